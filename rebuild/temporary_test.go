package rebuild

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// TestTemporary: what is worth another try, asked of real servers and files.
func TestTemporary(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	rude, err := net.Listen("tcp", "127.0.0.1:0") // hangs up at once
	if err != nil {
		t.Fatal(err)
	}
	defer rude.Close()
	go func() {
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	for name, c := range map[string]struct {
		change func(*site)
		want   bool
	}{
		"nobody listens": {func(s *site) { s.loc.Source = "https://" + closed.Addr().String() + "/recipe" }, true},
		"hangs up":       {func(s *site) { s.loc.Source = "https://" + rude.Addr().String() + "/recipe" }, true},
		"no repository":  {func(s *site) { s.loc.Source = filepath.Join(t.TempDir(), "none") }, false},
		"no such commit": {func(s *site) { s.loc.Source, _ = repository(t, "sha1", map[string]string{"other": "x"}) }, false},
		"other bytes":    {func(s *site) { s.write(filepath.Join(s.loc.Datasets["corpus"], "two.txt"), "drei\n") }, false},
		"no image":       {func(s *site) { s.loc.Image = t.TempDir() }, false},
		"private address": {func(s *site) { // a registry's
			s.loc.Image = ""
			deps := s.st.Predicate.BuildDefinition.ResolvedDependencies
			for i := range deps {
				if deps[i].Name == verifier.EnvironmentName {
					deps[i].URI = "oci://" + rude.Addr().String() + "/base"
				}
			}
		}, false},
		"no location": {func(s *site) { s.loc.Datasets = nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			c.change(s)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := Reproduce(ctx, s.config(nil), s.ledger(), s.loc)
			var f *Failure
			if r != nil || !errors.As(err, &f) || f.Verdict != capstore.FetchFailed || f.Temporary != c.want {
				t.Errorf("Reproduce = %v, %+v, want FETCH_FAILED, temporary %t", err, f, c.want)
			}
		})
	}
}

// TestRunJobRetry: the answer says whether another try is worth it.
func TestRunJobRetry(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for source, want := range map[string]bool{"https://" + closed.Addr().String() + "/recipe": true, "/nowhere": false} {
		s := newJobSite(t)
		s.loc.Source = source
		s.rewrite(s.envelope)
		r, err := RunJob(t.Context(), s.config)
		if err != nil || r.Verdict != capstore.FetchFailed || r.Retry != want {
			t.Errorf("RunJob with source %s = %+v, %v, want FETCH_FAILED, retry %t", source, r, err, want)
		}
		if stored, err := readResult(s.dir, r.Job, r.SBA); err != nil || stored.Retry != want {
			t.Errorf("the answer on disk is %+v, %v", stored, err)
		}
	}
}
