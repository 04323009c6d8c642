package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// ErrRefused is in an error of a place that this machine does not go to, which no
// retry can change.
var ErrRefused = errors.New("refused")

// transport returns a transport without proxies. The guarded one connects to
// public addresses only. It looks at the address that is connected to, so a
// name that resolves differently the second time gains nothing.
func transport(opts Options, guarded bool) *http.Transport {
	d := &net.Dialer{Timeout: opts.Stall, KeepAlive: 15 * time.Second}
	if guarded {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil || !public(at.Addr()) {
				return fmt.Errorf("%w to connect to %s for a ledger: expected a public address; hosts in the table [fetch] of clawfs.toml can allow it", ErrRefused, address)
			}
			return nil
		}
	}
	return &http.Transport{
		DialContext:            d.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: opts.RootCAs, MinVersion: tls.VersionTLS12},
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    1,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
}

// special are the ranges that the predicates of netip do not know and that do
// not lead to the public internet (IANA special-purpose address registries).
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	"5f00::/16", "fec0::/10",
)

// nat64 holds an IPv4 address in its last four bytes, which is what is reached.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func public(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// route sends each request of one place by the transport that is allowed for
// its host.
type route struct {
	c *Cache
	// named is the host that the operator named by naming the place, or empty.
	named string
}

// allowed says whether the operator named the host.
func (r route) allowed(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if r.named != "" && host == strings.ToLower(strings.TrimSuffix(r.named, ".")) {
		return true
	}
	for _, h := range r.c.opts.Hosts {
		h = strings.ToLower(h)
		if end, ok := strings.CutPrefix(h, "*"); ok && strings.HasSuffix(host, end) && len(host) > len(end) || h == host {
			return true
		}
	}
	return false
}

// RoundTrip implements http.RoundTripper.
func (r route) RoundTrip(req *http.Request) (*http.Response, error) {
	allowed := r.allowed(req.URL.Hostname())
	if req.URL.Scheme != "https" && (req.URL.Scheme != "http" || !allowed) {
		return nil, fmt.Errorf("%w to use %s://%s: expected https, or a host of hosts in the table [fetch] of clawfs.toml", ErrRefused, req.URL.Scheme, req.URL.Host)
	}
	if allowed {
		return r.c.open.RoundTrip(req)
	}
	return r.c.guarded.RoundTrip(req)
}

// redirect is http.Client.CheckRedirect.
func (r route) redirect(req *http.Request, via []*http.Request) error {
	last := via[len(via)-1].URL
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w to follow more than %d redirects", ErrRefused, maxRedirects)
	case last.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("%w to follow a redirect from https to %s://%s", ErrRefused, req.URL.Scheme, req.URL.Host)
	case req.URL.User != nil:
		return fmt.Errorf("%w to follow a redirect that carries credentials", ErrRefused)
	}
	req.Header.Del("Referer")
	return nil
}

const maxRedirects = 5
