package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/crypto/bcrypt"
	"oras.land/oras-go/v2"
	orasoci "oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci/ocitest"
)

// inProcess runs a registry in this process and returns its address.
func inProcess(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// distribution runs the distribution registry as a process and returns its
// address. more is added to its configuration.
func distribution(t testing.TB, more string) string {
	t.Helper()
	addr, _ := ocitest.Distribution(t, more)
	return addr
}

// push copies what a layout has under a name to a registry, by another
// implementation than the one under test.
func push(t testing.TB, layout, ref, target string, credential auth.CredentialFunc) {
	t.Helper()
	from, err := orasoci.NewFromFS(t.Context(), os.DirFS(layout))
	if err != nil {
		t.Fatal(err)
	}
	to, err := remote.NewRepository(target)
	if err != nil {
		t.Fatal(err)
	}
	to.PlainHTTP = true
	to.Client = &auth.Client{Credential: credential}
	if _, err := oras.Copy(t.Context(), from, ref, to, to.Reference.Reference, oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
}

func TestPullFromRegistries(t *testing.T) {
	layout, d := twoLayers(t)
	multi := index(t, layout, describe(t, layout, d, "amd64"), armImage(t, layout))
	if err := record(layout, multi); err != nil {
		t.Fatal(err)
	}
	for name, host := range map[string]string{"in process": inProcess(t), "distribution": distribution(t, "")} {
		t.Run(name, func(t *testing.T) {
			push(t, layout, "v1", host+"/acme/base:v1", nil)
			push(t, layout, string(multi.Digest), host+"/acme/base:multi", nil)
			repository := "oci://" + host + "/acme/base"
			for _, from := range []string{
				repository, "docker" + strings.TrimPrefix(repository, "oci"), repository + ":v1", repository + ":multi", repository + ":never",
				repository + "@sha256:" + d.String(), repository + "@" + string(multi.Digest), repository + ":v1@" + string(multi.Digest),
			} {
				dest := t.TempDir()
				if err := Pull(t.Context(), from, d, dest, options()); err != nil {
					t.Errorf("Pull: %v", err)
					continue
				}
				checkPulled(t, dest, d)
			}
			absent := hashpipe.SumBytes([]byte("absent")).Claim()
			for _, tt := range []struct {
				from string
				want hashpipe.Digest
				arch string
				text string
				is   error
			}{
				{repository, absent, "amd64", "is not there", nil},
				{repository + "x", d, "amd64", "is not there", nil},
				{repository + ":v1", absent, "amd64", "leads to the manifest sha256:" + d.String(), ErrOtherBytes},
				{repository + ":multi", absent, "amd64", d.String(), ErrOtherBytes},
				{repository + "@" + string(multi.Digest), d, "arm64", "has another manifest", ErrOtherBytes},
				{repository + "@" + string(multi.Digest), d, "s390x", "nothing for linux/s390x", ErrOtherBytes},
				{repository, mustParse(t, multi.Digest), "amd64", "a ledger names the manifest of one platform", nil},
			} {
				o := options()
				o.Platform.Architecture = tt.arch
				err := Pull(t.Context(), tt.from, tt.want, t.TempDir(), o)
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("Pull of %v from %s: %v, want an error with %q", tt.want, tt.from, err, tt.text)
					continue
				}
				checkKind(t, err, tt.is)
			}
			// A half that another call left is completed by a range.
			_, layers, err := inspect(t.Context(), layout, d)
			if err != nil {
				t.Fatal(err)
			}
			blob, err := os.ReadFile(filepath.Join(layout, "blobs/sha256", layers[0].blob.String()))
			if err != nil {
				t.Fatal(err)
			}
			dest := t.TempDir()
			half := filepath.Join(dest, "blobs/sha256/.part-"+layers[0].blob.String())
			if err := errors.Join(os.MkdirAll(filepath.Dir(half), 0o755), os.WriteFile(half, blob[:2<<20], 0o644)); err != nil {
				t.Fatal(err)
			}
			var seen int64
			o := options()
			o.Seen = func(n int64) { seen += n }
			if err := Pull(t.Context(), repository, d, dest, o); err != nil || name == "distribution" && seen > int64(len(blob))-1<<20 {
				t.Errorf("Pull onto a half: %v, %d bytes came", err, seen)
			}
			checkPulled(t, dest, d)
		})
	}
}

// Credentials come from a Docker configuration; a helper program runs only where
// the operator named the place.
func TestRegistryCredentials(t *testing.T) {
	layout, d := twoLayers(t)
	hash, err := bcrypt.GenerateFromPassword([]byte("letmein"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	passwords := filepath.Join(dir, "htpasswd")
	ran := filepath.Join(dir, "ran")
	bin := filepath.Join(dir, "bin")
	helper := fmt.Sprintf("#!/bin/sh\ntouch %s\necho '{\"ServerURL\":\"x\",\"Username\":\"worker\",\"Secret\":\"letmein\"}'\n", ran)
	if err := errors.Join(os.WriteFile(passwords, []byte("worker:"+string(hash)+"\n"), 0o600), os.Mkdir(bin, 0o755),
		os.WriteFile(filepath.Join(bin, "docker-credential-toy"), []byte(helper), 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	host := distribution(t, fmt.Sprintf("auth: {htpasswd: {realm: acme, path: %s}}\n", passwords))
	push(t, layout, "v1", host+"/acme/base:v1", func(context.Context, string) (auth.Credential, error) {
		return auth.Credential{Username: "worker", Password: "letmein"}, nil
	})
	config := func(text string) string {
		name := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good := config(`{"auths":{"` + host + `":{"auth":"d29ya2VyOmxldG1laW4="}}}`)
	wrong := config(`{"auths":{"` + host + `":{"auth":"d29ya2VyOndyb25n"}}}`)
	elsewhere := config(`{"auths":{"registry.example":{"auth":"d29ya2VyOmxldG1laW4="}}}`)
	withHelper := config(`{"credHelpers":{"` + host + `":"toy"}}`)
	for _, tt := range []struct {
		name, config string
		trusted      bool
		text         string // or "": it works
	}{
		{"none", "", true, "the registry wants credentials"},
		{"absent file", filepath.Join(dir, "absent.json"), true, "the registry wants credentials"},
		{"no JSON", config("{"), true, "reading credentials"},
		{"wrong password", wrong, true, "it wants other credentials"},
		{"of another registry", elsewhere, true, "the registry wants credentials"},
		{"helper for a ledger's location", withHelper, false, "the registry wants credentials"},
		{"in the file", good, false, ""},
		{"in the file, operator's location", good, true, ""},
		{"helper for the operator's location", withHelper, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			o.DockerConfig, o.Trusted = tt.config, tt.trusted
			err := Pull(t.Context(), "oci://"+host+"/acme/base:v1", d, t.TempDir(), o)
			if tt.text == "" && err != nil {
				t.Error(err)
			}
			if tt.text != "" {
				if err == nil || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "wrong") {
					t.Fatalf("Pull: %v, want an error with %q", err, tt.text)
				}
				checkKind(t, err, nil)
			}
			if _, err := os.Stat(ran); (err == nil) != (tt.config == withHelper && tt.trusted) {
				t.Errorf("the helper ran: %v", err == nil)
			}
		})
	}
}

// A registry that hands out tokens, as the large ones do, and keeps its blobs
// elsewhere: the token is asked for this repository and for reading, with the
// credentials, and neither of them reaches the other place.
func TestRegistryTokens(t *testing.T) {
	layout, d := twoLayers(t)
	var scopes, leaked []string
	blobs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked = append(leaked, a)
		}
		serveBlob(w, r, layout)
	}))
	defer blobs.Close()
	var host string
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			user, password, _ := r.BasicAuth()
			if status != http.StatusOK || user != "worker" || password != "letmein" {
				http.Error(w, "{}", max(status, http.StatusUnauthorized))
				return
			}
			scopes = append(scopes, r.URL.Query()["scope"]...)
			io.WriteString(w, `{"token":"abc","expires_in":300}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer abc" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="acme",scope="repository:acme/base:pull,push"`, host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, blobs.URL+r.URL.Path+"?signature=1", http.StatusTemporaryRedirect)
			return
		}
		serveBlob(w, r, layout)
	}))
	defer srv.Close()
	host = strings.TrimPrefix(srv.URL, "http://")
	o := options()
	asked := map[string]bool{} // the transport carries all of it, so that it can refuse
	o.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		asked[r.URL.Host+strings.SplitAfterN(r.URL.Path, "/", 3)[1]] = true
		return http.DefaultTransport.RoundTrip(r)
	})
	o.DockerConfig = filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(o.DockerConfig, []byte(`{"auths":{"`+host+`":{"auth":"d29ya2VyOmxldG1laW4="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dest := t.TempDir()
	if err := Pull(t.Context(), "oci://"+host+"/acme/base", d, dest, o); err != nil {
		t.Fatal(err)
	}
	checkPulled(t, dest, d)
	if len(leaked) != 0 {
		t.Errorf("the other place got %q", leaked)
	}
	other := strings.TrimPrefix(blobs.URL, "http://")
	if !asked[host+"v2/"] || !asked[host+"token"] || !asked[other+"v2/"] {
		t.Errorf("the transport carried %v, want the registry, its tokens and its other place", asked)
	}
	if len(scopes) != 1 || !strings.HasPrefix(scopes[0], "repository:acme/base:") {
		t.Errorf("tokens were asked for %q, want one for the repository", scopes)
	}
	o.DockerConfig = ""
	err := Pull(t.Context(), "oci://"+host+"/acme/base", d, t.TempDir(), o)
	if err == nil || strings.Contains(err.Error(), "abc") {
		t.Errorf("Pull without credentials: %v", err)
	}
	checkKind(t, err, nil)
	status = http.StatusServiceUnavailable
	err = Pull(t.Context(), "oci://"+host+"/acme/base", d, t.TempDir(), o)
	checkKind(t, err, ErrUnreachable)
}
