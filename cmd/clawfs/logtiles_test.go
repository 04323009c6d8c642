package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier/tlog/tiles"
)

func TestTilesAt(t *testing.T) {
	dir := t.TempDir()
	full, long := bytes.Repeat([]byte{7}, tiles.MaxTile), make([]byte, tiles.MaxTile+1)
	for name, data := range map[string][]byte{"tile/0/000": full, "tile/0/001": long} {
		path := filepath.Join(dir, "log", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	files := http.FileServer(http.Dir(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasPrefix(req.URL.Path, "/moved/"):
			http.Redirect(w, req, "/log/"+strings.TrimPrefix(req.URL.Path, "/moved/"), http.StatusFound)
		case strings.HasPrefix(req.URL.Path, "/loop/"):
			http.Redirect(w, req, req.URL.Path, http.StatusFound)
		case strings.HasPrefix(req.URL.Path, "/broken/"):
			http.Error(w, "no", http.StatusInternalServerError)
		case strings.HasPrefix(req.URL.Path, "/gone/"):
			http.Error(w, "no", http.StatusGone)
		case strings.HasPrefix(req.URL.Path, "/short/"):
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("x"))
		case strings.HasPrefix(req.URL.Path, "/slow/"):
			<-req.Context().Done()
		default:
			files.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(srv.Close)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		where, path string
		ctx         context.Context
		want        string // of the error; "" for none
		missing     bool
	}{
		{srv.URL + "/log", "tile/0/000", nil, "", false},
		{srv.URL + "/log/", "tile/0/000", nil, "", false},
		{srv.URL + "/moved", "tile/0/000", nil, "", false},
		{"file://" + dir + "/log", "tile/0/000", nil, "", false},
		{dir + "/log", "tile/0/000", nil, "", false},
		{srv.URL + "/log", "tile/0/001", nil, "longer than any tile", false},
		{dir + "/log", "tile/0/001", nil, "longer than that", false},
		{srv.URL + "/log", "tile/0/002", nil, "404", true},
		{srv.URL + "/gone", "tile/0/002", nil, "410", true},
		{dir + "/log", "tile/0/002", nil, "tile/0/002", true},
		{dir + "/log", "tile/0", nil, "directory", false},
		{srv.URL + "/loop", "tile/0/000", nil, "more than 3 redirects", false},
		{srv.URL + "/broken", "tile/0/000", nil, "500", false},
		{srv.URL + "/short", "tile/0/000", nil, "unexpected EOF", false},
		{srv.URL + "/slow", "tile/0/000", cancelled, "context canceled", false},
		{dir + "/log", "tile/0/000", cancelled, "context canceled", false},
	} {
		if tt.ctx == nil {
			tt.ctx = t.Context()
		}
		fetch, err := tilesAt(tt.where)
		if err != nil {
			t.Errorf("tilesAt(%q): %v", tt.where, err)
			continue
		}
		got, err := fetch(tt.ctx, tt.path)
		switch {
		case tt.want == "" && (err != nil || !bytes.Equal(got, full)):
			t.Errorf("%s %s = %d bytes, %v, want the tile", tt.where, tt.path, len(got), err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, fs.ErrNotExist) != tt.missing):
			t.Errorf("%s %s: %v, want an error with %q, missing: %v", tt.where, tt.path, err, tt.want, tt.missing)
		}
	}
	for _, where := range []string{"", "log.example/models", "ftp://log.example/models", "http://", "file://log.example/models", "./log", "https:log"} {
		if _, err := tilesAt(where); err == nil {
			t.Errorf("tilesAt(%q) succeeds", where)
		}
	}
}
