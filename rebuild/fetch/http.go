package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/hashpipe"
)

// retry says what to do after a transient error.
type retry struct {
	never bool          // ask the next place
	after time.Duration // what the server asked for
}

const (
	// maxPause bounds what a server can ask for with Retry-After, and the
	// back-off.
	maxPause = 30 * time.Second
	// headway is how many new bytes make an attempt count as a success that
	// was cut off: then the number of attempts begins again.
	headway = 1 << 20
)

var errStalled = errors.New("stalled")

// download brings the content of one URL into files of one directory, and
// continues what is there of it.
type download struct {
	c     *Cache
	name  string // of the entry
	place Place
	url   *url.URL
	most  int64
	seen  func(int64)
	path  string // the bytes; path + ".json" is its state
	// resumed: some bytes are from an earlier answer than others.
	resumed bool
	gained  int64 // bytes of the last attempt
}

// state is what is known of a partial download. It is written before its first
// byte; bytes without it, or with another URI, are not used.
type state struct {
	URI       string `json:"uri"`
	Validator string `json:"validator,omitempty"` // for If-Range; without it nothing is continued
	Total     int64  `json:"total"`               // -1 if the server did not say
}

func (c *Cache) newDownload(name string, p Place, u *url.URL, most int64, seen func(int64)) *download {
	key := hashpipe.SumBytes([]byte(u.String())).String()[:32]
	return &download{c: c, name: name, place: p, url: u, most: most, seen: seen, path: filepath.Join(c.partial(name), key)}
}

// run returns when all bytes are in d.path. They are not checked.
func (d *download) run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return &local{err}
	}
	for failed := 0; ; {
		err := d.attempt(ctx)
		var t *transient
		if !errors.As(err, &t) || ctx.Err() != nil || t.retry.never {
			return err
		}
		if d.gained >= headway {
			failed = 0
		}
		if failed++; failed >= d.c.opts.Attempts {
			return err
		}
		d.c.note(Note{Entry: d.name, Event: Retrying, Place: d.place, Err: err})
		pause := min(d.c.pause<<min(failed-1, 16), maxPause)
		pause = pause/2 + rand.N(pause/2+1)
		if err := sleep(ctx, min(max(pause, t.retry.after), maxPause)); err != nil {
			return err
		}
	}
}

// again forgets what is there.
func (d *download) again() error {
	d.resumed = false
	for _, p := range []string{d.path, d.path + ".json"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &local{err}
		}
	}
	return nil
}

// load returns the state and the number of bytes that can be continued.
func (d *download) load() (state, int64) {
	var st state
	b, err := os.ReadFile(d.path + ".json")
	if err != nil || json.Unmarshal(b, &st, json.RejectUnknownMembers(true)) != nil || st.URI != d.url.String() || !printable(st.Validator) {
		return state{Total: -1}, 0
	}
	info, err := os.Lstat(d.path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > d.most {
		return state{Total: -1}, 0
	}
	return st, info.Size()
}

// printable says whether a header can hold s, which is not empty.
func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// begin makes an empty file with its state.
func (d *download) begin(st state) error {
	if err := d.again(); err != nil {
		return err
	}
	b, err := json.Marshal(st)
	if err != nil {
		return &local{err}
	}
	if err := os.WriteFile(d.path+".tmp", b, 0o600); err != nil {
		return &local{err}
	}
	if err := os.Rename(d.path+".tmp", d.path+".json"); err != nil {
		return &local{err}
	}
	return nil
}

func (d *download) attempt(ctx context.Context) error {
	d.gained = 0
	st, have := d.load()
	if have > 0 && have == st.Total {
		d.resumed = true
		return nil
	}
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(d.c.opts.Stall, func() { cancel(errStalled) })
	defer stall.Stop()

	req, err := http.NewRequestWithContext(limited, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "clawfs")
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		req.Header.Set("If-Range", st.Validator)
	}
	r := route{c: d.c}
	if d.place.Trusted {
		r.named = d.url.Hostname()
	}
	client := http.Client{Transport: r, CheckRedirect: r.redirect}
	resp, err := client.Do(req)
	if err != nil {
		return d.failed(ctx, limited, err)
	}
	defer resp.Body.Close()
	stall.Reset(d.c.opts.Stall)
	have, total, err := d.answer(resp, st, have)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return &local{err}
	}
	defer f.Close()
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return &local{err}
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			stall.Reset(d.c.opts.Stall)
			if have += int64(n); have > d.most {
				return errors.Join(&wrong{fmt.Sprintf("at most %d bytes", d.most), "more"}, d.again())
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return &local{err}
			}
			d.gained += int64(n)
			if d.seen != nil {
				d.seen(int64(n))
			}
		}
		switch {
		case err == io.EOF && total >= 0 && have != total:
			return &transient{error: fmt.Errorf("it ended after %d of %d bytes", have, total)}
		case err == io.EOF:
			if err := f.Close(); err != nil {
				return &local{err}
			}
			return nil
		case err != nil:
			return d.failed(ctx, limited, err)
		}
	}
}

// answer reads the head of an answer. It returns the offset at which the body
// begins and the size of the whole, or -1.
func (d *download) answer(resp *http.Response, st state, have int64) (from, total int64, err error) {
	switch s := resp.StatusCode; {
	case s == http.StatusOK:
		from, total = 0, resp.ContentLength
	case s == http.StatusPartialContent && have > 0:
		if from, total, err = contentRange(resp); err != nil {
			return 0, 0, err
		}
		if from != have || st.Total >= 0 && total != st.Total || changed(resp, st.Validator) {
			return 0, 0, d.restart(have, errors.New("the range is of another file"))
		}
	case s == http.StatusRequestedRangeNotSatisfiable && have > 0:
		return 0, 0, d.restart(have, errors.New("the file is shorter now"))
	case s == http.StatusRequestTimeout || s == http.StatusTooEarly || s == http.StatusTooManyRequests || s >= 500 && s != http.StatusNotImplemented && s != http.StatusHTTPVersionNotSupported:
		return 0, 0, &transient{fmt.Errorf("the server answers %d", s), retry{after: retryAfter(resp)}}
	default:
		return 0, 0, fmt.Errorf("the server answers %d", s)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return 0, 0, fmt.Errorf("the server answers in encoding %.40q, which was not asked for", e)
	}
	if total > d.most {
		return 0, 0, errors.Join(&wrong{fmt.Sprintf("at most %d bytes", d.most), fmt.Sprintf("%d", total)}, d.again())
	}
	if from > 0 {
		d.resumed = true
		d.c.note(Note{Entry: d.name, Event: Resumed, Place: d.place, Bytes: from})
		return from, total, nil
	}
	if have > 0 {
		d.c.note(Note{Entry: d.name, Event: Restarted, Place: d.place, Bytes: have})
	}
	return 0, total, d.begin(state{d.url.String(), validator(resp), total})
}

// restart begins again, after what is there was of no use.
func (d *download) restart(have int64, why error) error {
	d.c.note(Note{Entry: d.name, Event: Restarted, Place: d.place, Bytes: have, Err: why})
	if err := d.again(); err != nil {
		return err
	}
	return &transient{error: why}
}

// validator returns what If-Range may name (RFC 9110 section 13.1.5): a strong
// entity tag, or a date that is a strong one because the file was not written
// in the second before the answer.
func validator(resp *http.Response) string {
	if tag := resp.Header.Get("ETag"); strings.HasPrefix(tag, `"`) && len(tag) <= 1024 {
		return tag
	}
	text := resp.Header.Get("Last-Modified")
	modified, err := http.ParseTime(text)
	date, err2 := http.ParseTime(resp.Header.Get("Date"))
	if err != nil || err2 != nil || date.Sub(modified) < time.Second {
		return ""
	}
	return text
}

// changed says whether an answer of a part names another file than validator.
func changed(resp *http.Response, validator string) bool {
	now := resp.Header.Get("Last-Modified")
	if strings.HasPrefix(validator, `"`) {
		now = resp.Header.Get("ETag")
	}
	return now != "" && now != validator
}

// contentRange reads "bytes FROM-LAST/TOTAL" (RFC 9110 section 14.4) up to the
// end of the file; total is -1 if it is "*".
func contentRange(resp *http.Response) (from, total int64, err error) {
	text := resp.Header.Get("Content-Range")
	bad := fmt.Errorf("the server answers with a part and Content-Range %.80q", text)
	span, whole, ok := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	first, last, ok2 := strings.Cut(span, "-")
	from, err = strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || !ok2 || err != nil || err2 != nil || from < 0 || end < from {
		return 0, 0, bad
	}
	if whole == "*" {
		return from, -1, nil
	}
	if total, err = strconv.ParseInt(whole, 10, 64); err != nil || total != end+1 {
		return 0, 0, bad
	}
	return from, total, nil
}

// retryAfter reads seconds or a date (RFC 9110 section 10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	text := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(text); err == nil {
		return time.Until(t)
	}
	return 0
}

// failed sorts an error of the network.
func (d *download) failed(ctx, limited context.Context, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // it repeats the URL
	}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(context.Cause(limited), errStalled):
		return &transient{fmt.Errorf("the server sent nothing for %v", d.c.opts.Stall), retry{never: true}}
	case errors.Is(err, ErrRefused), errors.As(err, &cert), errors.As(err, &dns) && dns.IsNotFound:
		return err
	}
	var slow net.Error
	return &transient{err, retry{never: errors.As(err, &slow) && slow.Timeout()}}
}
