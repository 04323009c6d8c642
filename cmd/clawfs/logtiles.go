package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/openclaw/clawfs/verifier/tlog/tiles"
)

const (
	// logPatience bounds the time in which a proof is fetched from a log.
	logPatience = time.Minute
	// tilePatience bounds the time for one file of it.
	tilePatience = 20 * time.Second
	// maxLogRedirects bounds how often a log may send a request elsewhere.
	maxLogRedirects = 3
)

// tilesAt reads the files of a log below where: an https, http or file URL, or
// an absolute path. What it brings is checked by whoever asked.
func tilesAt(where string) (tiles.Fetch, error) {
	u, err := url.Parse(where)
	switch {
	case err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "":
		return tilesOverHTTP(u), nil
	case err == nil && u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		return tilesBelow(u.Path), nil
	case filepath.IsAbs(where):
		return tilesBelow(where), nil
	}
	return nil, exitf(codeRefused, "log at %q: expected an https, http or file URL or an absolute path", where)
}

func tilesBelow(dir string) tiles.Fetch {
	return func(ctx context.Context, path string) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := filepath.Join(dir, filepath.FromSlash(path))
		data, err := readBeside("", name, tiles.MaxTile)
		if err == nil && data == nil {
			err = &fs.PathError{Op: "reading", Path: name, Err: fs.ErrNotExist}
		}
		return data, err
	}
}

func tilesOverHTTP(base *url.URL) tiles.Fetch {
	client := &http.Client{
		Timeout: tilePatience,
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > maxLogRedirects {
				return fmt.Errorf("more than %d redirects", maxLogRedirects)
			}
			return nil
		},
	}
	return func(ctx context.Context, path string) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath(strings.Split(path, "/")...).String(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
		case http.StatusNotFound, http.StatusGone:
			return nil, fmt.Errorf("%s: %s: %w", req.URL, resp.Status, fs.ErrNotExist)
		default:
			return nil, fmt.Errorf("%s: %s", req.URL, resp.Status)
		}
		data, err := io.ReadAll(io.LimitReader(resp.Body, tiles.MaxTile+1))
		if err == nil && len(data) > tiles.MaxTile {
			err = errors.New("it is longer than any tile")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", req.URL, err)
		}
		return data, nil
	}
}
