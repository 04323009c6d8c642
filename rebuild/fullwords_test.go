package rebuild

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
)

// TestWordsOfAFullDisk: whoever chooses words of an error, a ledger or a server,
// cannot make it look like this machine's full disk: that is no answer, keeps
// the other places from being asked, and starts the job again.
func TestWordsOfAFullDisk(t *testing.T) {
	s := newSite(t)
	s.st.Predicate.BuildDefinition.ResolvedDependencies = append(s.st.Predicate.BuildDefinition.ResolvedDependencies, verifier.Dependency{
		Name: verifier.LFSPrefix + "No space left on device", Digest: verifier.DigestSet{SHA256: hashpipe.SumBytes([]byte("x")).Claim()},
		URI: "file:///nowhere", Annotations: &verifier.Annotations{Bytes: 1},
	})
	rep, err := Reproduce(t.Context(), s.config(nil), s.ledger(), s.loc)
	rep.Close()
	var f *Failure
	if !errors.As(err, &f) || f.Verdict != capstore.FetchFailed || exhausted(err) {
		t.Errorf("Reproduce = %v, want FETCH_FAILED", err)
	}
}

// TestGitFullDisk: git's own words count, those that it passes on do not.
func TestGitFullDisk(t *testing.T) {
	for said, want := range map[string]bool{
		"fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output":                      true,
		"error: unable to write file objects/1: No space left on device":                                                 true,
		"error: file write error: Disk quota exceeded":                                                                   true,
		"fatal: remote error: No space left on device":                                                                   false,
		"fatal: remote error: upload-pack: No space left on device":                                                      false,
		"remote: fatal: write error: No space left on device":                                                            false,
		"fatal: '/x/: No space left on device' does not appear to be a git repository":                                   false,
		"fatal: unable to access 'https://git.example/': The requested URL returned error: 500: No space left on device": false,
		"": false,
	} {
		var words tail
		words.Write([]byte(said))
		if words.full() != want {
			t.Errorf("%q: full = %t, want %t", said, !want, want)
		}
	}
}

// TestGitServerSaysItIsFull: a real git daemon's last words do not keep the next
// place from being asked.
func TestGitServerSaysItIsFull(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			text := "ERR upload-pack: No space left on device"
			fmt.Fprintf(c, "%04x%s", len(text)+4, text)
			c.Close()
		}
	}()
	g := &gitProgram{dir: t.TempDir(), protocol: "git", memory: maxGitMemory}
	err = runGit(g.command(t.Context(), "ls-remote", "git://"+l.Addr().String()+"/x"))
	if err == nil || !strings.Contains(err.Error(), "No space left on device") || errors.Is(err, unix.ENOSPC) || exhausted(err) {
		t.Errorf("ls-remote = %v, want the server's words and no ENOSPC", err)
	}
}

// TestTemporaryOfSeveral: one place that may come back is enough, whichever it is.
func TestTemporaryOfSeveral(t *testing.T) {
	gone, late := &gitError{text: "fatal: not found"}, &gitError{text: "fatal: Connection refused"}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{failures{gone, late}, true}, {failures{late, gone}, true}, {failures{gone, gone}, false},
		{fmt.Errorf("submodule %q: %w", "Connection refused", gone), false},
	} {
		if temporary(c.err) != c.want {
			t.Errorf("temporary(%v) = %t", c.err, !c.want)
		}
	}
}
