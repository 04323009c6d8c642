package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// placeHelp is what push, pull and search say about PLACE.
const placeHelp = `PLACE is oci://HOST[:PORT]/REPOSITORY, or the path of an OCI layout directory.
Credentials are those of fetch.docker_config in clawfs.toml, else of
$DOCKER_CONFIG/config.json or ~/.docker/config.json, as docker login or oras login
write them. A registry is spoken to by https; one on a loopback address, one
in fetch.plain_http, and with --plain-http the named one, by http.`

// proofSuffix is what the name of a log proof has behind that of its SBA.
const proofSuffix = ".tlog-proof"

// placeFlags say how a place is reached.
type placeFlags struct{ plainHTTP bool }

func (f *placeFlags) register(c *cobra.Command) {
	c.Flags().BoolVar(&f.plainHTTP, "plain-http", false, "the registry has no TLS")
}

func (a *app) openPlace(where string, f placeFlags) (*registry.Place, error) {
	settings, err := a.config().LoadSettings(os.Geteuid())
	if err != nil {
		return nil, err
	}
	if where == "" {
		return nil, exitf(codeUsage, "the place is empty; want oci://HOST/REPOSITORY or a directory")
	}
	o := oci.Options{
		Trusted: true, // its name was typed here, so a credential helper may run
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout:        30 * time.Second,
			DisableCompression:     true,
		},
		DockerConfig: settings.Fetch.DockerConfig,
		PlainHTTP:    settings.Fetch.PlainHTTP,
	}
	if o.DockerConfig == "" {
		o.DockerConfig = dockerConfig(os.Getenv)
	}
	if u, err := url.Parse(where); f.plainHTTP && err == nil {
		o.PlainHTTP = append(o.PlainHTTP, u.Host)
	}
	if where, err = absolute(where); err != nil {
		return nil, err
	}
	place, err := registry.Open(where, o)
	if err != nil {
		return nil, exit(codeUsage, err)
	}
	return place, nil
}

// dockerConfig is the configuration that docker and oras use, if there is one.
func dockerConfig(getenv func(string) string) string {
	dir := getenv("DOCKER_CONFIG")
	if dir == "" && getenv("HOME") != "" {
		dir = filepath.Join(getenv("HOME"), ".docker")
	}
	file := filepath.Join(dir, "config.json")
	if _, err := os.Stat(file); dir == "" || err != nil {
		return ""
	}
	return file
}

// registryError gives an error of a place its exit code: a place that lies, or
// holds something else, is refused; the rest is an error that may pass.
func registryError(err error) error {
	var lie *registry.LieError
	var conflict *registry.ConflictError
	if errors.As(err, &lie) || errors.As(err, &conflict) {
		return exit(codeRefused, err)
	}
	return err
}

// readRecordFile reads a file with a record, and the log proof beside an SBA.
func readRecordFile(path string) (registry.Record, error) {
	text, err := readBounded(path, dsse.MaxEnvelope)
	if err != nil {
		return registry.Record{}, err
	}
	r, err := registry.Identify(text)
	if err != nil {
		return registry.Record{}, exitf(codeRefused, "%s: want a signed record (attestation, capability, provenance, revocation or policy): %w", printable(path), notThat(err, text, anyFile))
	}
	if r.Kind != registry.SBA {
		return r, nil
	}
	if _, err := os.Lstat(path + proofSuffix); errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	proof, err := readBounded(path+proofSuffix, registry.MaxProof)
	if err != nil {
		return registry.Record{}, err
	}
	if r, err = r.WithProof(proof); err != nil {
		return registry.Record{}, exitf(codeRefused, "%s: %w", printable(path+proofSuffix), err)
	}
	return r, nil
}

// describe names a record for people. What it says is the record's own claim.
func describe(r registry.Record) string {
	text := r.Tag()
	if r.Claims.Model != "" {
		text += fmt.Sprintf(" (%s %s)", r.Claims.Model, r.Claims.Version)
	}
	return printable(strings.TrimSuffix(text, " "))
}
