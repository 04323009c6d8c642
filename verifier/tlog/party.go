package tlog

import "slices"

// Party is a witness of a policy's quorum, or a group of parties.
type Party struct {
	Name    string
	Key     VerifierKey // of a witness; the zero key for a group
	URL     string      // of a witness, as the policy has it; it may be ""
	K       int         // of a group: how many members are enough, at least 1
	Members []Party     // of a group: 1 to 64; nil for a witness
}

// LogSource is a log of a policy: its key, and where the policy says that it is.
type LogSource struct {
	Key VerifierKey
	URL string // as the policy has it; it may be ""
}

// Quorum returns who must cosign a checkpoint, for a log that asks them. It is
// false if the policy asks nobody: quorum none, and the zero Policy. No key
// occurs twice in it.
func (p Policy) Quorum() (Party, bool) {
	if p.IsZero() || p.quorum == noQuorum {
		return Party{}, false
	}
	return p.party(p.quorum), true
}

func (p Policy) party(i int) Party {
	a := p.parties[i]
	out := Party{Name: a.name, Key: a.key, URL: a.url, K: a.k}
	for _, m := range a.members {
		out.Members = append(out.Members, p.party(m))
	}
	return out
}

// Logs returns the logs in the order of the policy's lines.
func (p Policy) Logs() []LogSource {
	var logs []LogSource
	for _, l := range p.logs {
		logs = append(logs, LogSource{l.key, l.url})
	}
	return logs
}

// Witnesses returns the witnesses of a party, in the order of its members: the
// party itself if it is one.
func (p Party) Witnesses() []Party {
	if len(p.Members) == 0 {
		return []Party{p}
	}
	var all []Party
	for _, m := range p.Members {
		all = slices.Concat(all, m.Witnesses())
	}
	return all
}
