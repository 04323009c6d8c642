package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tiles"
)

// proofFlags say where the log proof of an attestation is.
type proofFlags struct{ proof, consistency string }

func (p *proofFlags) register(c *cobra.Command) {
	registerProof(c, &p.proof)
	c.Flags().StringVar(&p.consistency, "consistency", "", "`file` with the proof that the log only grew since its newest checkpoint here (default FILE.sba.tlog-consistency, if there is one, else the log's tiles at the policy's URL)")
}

func registerProof(c *cobra.Command, proof *string) {
	c.Flags().StringVar(proof, "proof", "", "`file` with the proof that the attestation lies in a log (default FILE.sba.tlog-proof, if there is one)")
}

func registerLogPolicy(c *cobra.Command, file *string) {
	c.Flags().StringVar(file, "log-policy", "", "`file` that says which logs and witnesses are believed, C2SP tlog-policy (default the logs of policy.json)")
}

// readBeside reads a file that was named, or, if none was, the one with that
// name, which need not be there: then it is nil. An empty file is not nil.
func readBeside(named, otherwise string, limit int64) ([]byte, error) {
	if named == "" {
		if _, err := os.Stat(otherwise); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		named = otherwise
	}
	return readBounded(named, limit)
}

func readProof(named, sba string) ([]byte, error) {
	return readBeside(named, sba+verifier.ProofSuffix, tlog.MaxProof)
}

// maxConsistency bounds the text of a consistency proof in bytes: 64 lines, and
// some more, so that a longer one is refused by its form.
const maxConsistency = 64 << 10

// remembered is where the checkpoint of att stands against the one that is
// remembered of its log. needed: they are of different trees, and a proof has to
// connect them.
func remembered(m tlog.Memory, att verifier.Attestation) (older, newer tiles.Tree, needed bool) {
	c := att.Checkpoint()
	size, root, seen := m.Newest(c.Origin())
	seenTree, tree := tiles.Tree{Size: size, Root: root}, tiles.Tree{Size: c.Size(), Root: c.Root()}
	if size < c.Size() {
		return seenTree, tree, seen
	}
	return tree, seenTree, seen && size > c.Size()
}

// consistency finds the proof that connects the checkpoint of att with the one
// that is remembered, where one is needed: in a file, else at the log itself.
// The daemon, which remembers, has no network. sba is the attestation's file.
func (a *app) consistency(ctx context.Context, policy *verifier.Policy, m tlog.Memory, att verifier.Attestation, named, sba string) ([]byte, error) {
	model := att.Ledger().Statement().Predicate.Model
	text, err := readBeside(named, sba+verifier.ConsistencySuffix, maxConsistency)
	older, newer, needed := remembered(m, att)
	if err != nil || !needed {
		return nil, err
	}
	fits := func(text []byte) error {
		proof, err := tlog.ParseConsistency(text)
		if err == nil {
			_, err = memory.Compare(m, att.Checkpoint(), proof)
		}
		return err
	}
	without := fits(text)
	var r *tlog.Refusal
	if without == nil || named != "" || errors.As(without, &r) && r.Reason == tlog.ReasonFork {
		return text, a.refuseSeen(policy, att, without, sba)
	}
	// What lies beside it is of another day; the log knows better.
	url := logURL(policy, att.Checkpoint().Origin())
	if url == "" {
		return nil, a.refuseSeen(policy, att, without, sba)
	}
	fetch, err := tilesAt(url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, logPatience)
	defer cancel()
	proof, err := tiles.Consistency(ctx, fetch, older, newer)
	switch {
	case errors.Is(err, tiles.ErrNotExtended):
		return nil, refusal(sba, verifier.RefuseLog(model, &tlog.Refusal{Reason: tlog.ReasonFork, Detail: fmt.Sprintf(
			"log %s SHOWS TWO TREES: it signed size %d, root %v, and size %d, root %v, and by its own tiles the second does not extend the first: do not use this log, and show both checkpoints (%s, and the one in the proof of %s) to its operator and its witnesses",
			att.Checkpoint().Origin(), older.Size, older.Root, newer.Size, newer.Root, a.command("memory", "show", att.Checkpoint().Origin()), sba)}))
	case err != nil:
		if r != nil {
			without = &tlog.Refusal{Reason: r.Reason, Detail: fmt.Sprintf("%s (%s, asked for a proof, gave none: %v)", r.Detail, url, err)}
		}
		return nil, a.refuseSeen(policy, att, without, sba)
	}
	return proof.Encode()
}

// refuseSeen is the refusal of an attestation by what is remembered of its log,
// with the next command. A nil err stays nil.
func (a *app) refuseSeen(policy *verifier.Policy, att verifier.Attestation, err error, sba string) error {
	if err == nil {
		return nil
	}
	return refusal(sba, seenRefusal(policy, att, err, shellWord(sba)))
}

// seenRefusal adds the next command to an error of memory.Compare; file is the
// attestation's, as a shell takes it.
func seenRefusal(policy *verifier.Policy, att verifier.Attestation, err error, file string) error {
	var r *tlog.Refusal
	if !errors.As(err, &r) {
		return err
	}
	refused := verifier.RefuseLog(att.Ledger().Statement().Predicate.Model, err)
	origin := att.Checkpoint().Origin()
	if r.Reason == tlog.ReasonFork {
		return fmt.Errorf("%w; next: clawfs memory show %s", refused, shellWord(origin))
	}
	url := logURL(policy, origin)
	if url == "" {
		url = "URL"
	}
	return fmt.Errorf("%w; next: clawfs log prove %s --log %s", refused, file, shellWord(url))
}

// logURL is where the policy says that a log is, "" if it does not.
func logURL(policy *verifier.Policy, origin string) string {
	logs, err := policy.LogPolicy()
	if err != nil {
		return ""
	}
	for _, l := range logs.Logs() {
		if l.Key.Name() == origin && l.URL != "" {
			return l.URL
		}
	}
	return ""
}

// logPolicy is the text of the log policy in a file, or, if none was named, that
// of policy.json. It is "" if there is neither.
func (a *app) logPolicy(named string) (string, error) {
	if named == "" {
		_, err := os.Lstat(config.State(a.state).Policy())
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return "", nil
		}
		p, err := a.readPolicy()
		if err != nil {
			return "", err
		}
		return p.Logs, nil
	}
	text, err := readBounded(named, tlog.MaxPolicy)
	if err != nil {
		return "", err
	}
	if _, err := tlog.ParsePolicy(text); err != nil {
		return "", fmt.Errorf("%s: %w", named, err)
	}
	return string(text), nil
}

// logEntry is what a person reads of the entry of an attestation in a log.
type logEntry struct {
	File      string     `json:"file"`
	Status    string     `json:"status"` // valid, not checked
	Origin    string     `json:"origin"`
	Index     int64      `json:"index"`
	Size      int64      `json:"size"`
	Root      string     `json:"root"`
	Witnesses []cosigner `json:"witnesses,omitempty"` // whose cosignatures are valid
}

type cosigner struct {
	Name string    `json:"name"`
	Time time.Time `json:"time"`
}

// inspectLog reads the log proof of an SBA for people: unverified, unless att was
// verified with it.
func inspectLog(file string, proof []byte, att verifier.Attestation) (*logEntry, error) {
	p, err := tlog.ParseProof(proof)
	if err != nil {
		return nil, exitf(codeRefused, "%s: %w", file, err)
	}
	if c := att.Checkpoint(); !c.IsZero() {
		e := &logEntry{File: file, Status: "valid", Origin: c.Origin(), Index: att.LogIndex(), Size: c.Size(), Root: c.Root().String()}
		for _, s := range c.Cosignatures() {
			e.Witnesses = append(e.Witnesses, cosigner{s.Witness, s.Time})
		}
		return e, nil
	}
	// ParseProof has seen that these are the lines of a checkpoint.
	lines := strings.SplitN(string(p.Checkpoint), "\n", 4)
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return nil, exitf(codeRefused, "%s: %w", file, err)
	}
	return &logEntry{File: file, Status: "not checked", Origin: lines[0], Index: p.Index, Size: size, Root: lines[2]}, nil
}

// memoryWarnings are what a person should know of the memory of a state
// directory.
func memoryWarnings(s config.State) (list []string) {
	d := memory.Dir(s.Memory())
	m, err := d.Logs()
	if err != nil {
		list = append(list, fmt.Sprintf("nothing that comes with a log proof is accepted: %v", err))
	}
	if _, err := d.Numbers(); err != nil {
		list = append(list, err.Error())
	}
	for _, origin := range m.Origins() {
		if _, _, forked := m.Fork(origin); forked {
			size, _, _ := m.Newest(origin)
			list = append(list, fmt.Sprintf("LOG FORK: %s signed two trees of size %d, so nothing is accepted by a proof from it; next: clawfs memory show %s, and show both checkpoints to its operator and its witnesses", origin, size, shellWord(origin)))
		}
	}
	return list
}
