package lock

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func parsed(t testing.TB, format, text string) List {
	t.Helper()
	list, err := Parse(format, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func py(name, version, path string) Package {
	return Package{Ecosystem: PyPI, Name: name, Version: version, Path: path}
}

func TestCompare(t *testing.T) {
	freeze := parsed(t, "pip-freeze", "torch==2.1.0\nnumpy==1.26.4\nscipy==1.11\npandas==2.0\nfast==1.0+cpu\n")
	have := []Package{
		py("torch", "2.1.0+cpu", "a"), py("numpy", "1.26.4", "a"), py("numpy", "1.25.0", "b"), py("scipy", "1.11.0", "a"),
		py("pip", "23.0.1", "a"), py("aiohttp", "3", "a"), py("fast", "1.0", "a"),
		{Ecosystem: Deb, Name: "libc6", Version: "2.36"}, {Ecosystem: Conda, Name: "pandas", Version: "2.0"},
	}
	d := Compare(freeze, have, Refused)
	if got, want := d.String(), `the image is not what the lock says: 1 missing, 2 of another version, 2 extra, 2 as locked
  missing  pandas 2.0
  differs  fast 1.0+cpu in the lock; the image has 1.0 in a
  differs  numpy 1.26.4 in the lock; the image has 1.26.4 in a and 1.25.0 in b
  extra    aiohttp 3 in a
  extra    pip 23.0.1 in a`; got != want {
		t.Errorf("String =\n%s\nwant\n%s", got, want)
	}
	if d.OK() || d.Matched != 2 {
		t.Errorf("OK = %v, Matched = %d", d.OK(), d.Matched)
	}
	// The order of what was found does not matter.
	slices.Reverse(have)
	if e := Compare(freeze, have, Refused); len(e.Missing) != 1 || len(e.Differ) != 2 || len(e.Extra) != 2 || e.Extra[0].Name != "aiohttp" {
		t.Errorf("Compare of the reverse = %v", e)
	}
	if e := Compare(freeze, have, Allowed); len(e.Extra) != 0 || len(e.Missing) != 1 || len(e.Differ) != 2 || e.OK() {
		t.Errorf("Compare with extras allowed = %v", e)
	}
}

func TestCompareOK(t *testing.T) {
	lock := parsed(t, "pip-freeze", "numpy==1.26.4")
	numpy := py("numpy", "1.26.4", "a")
	optional := parsed(t, "requirements", "numpy==1.26.4 ; python_version < '3.9' --hash=sha256:"+sumA)
	deb := parsed(t, "dpkg", "libc6:amd64 2.36\nzlib1g 1.2")
	libc := Package{Ecosystem: Deb, Name: "libc6", Arch: "amd64", Version: "2.36"}
	zlib := Package{Ecosystem: Deb, Name: "zlib1g", Arch: "amd64", Version: "1.2"}
	other := func(p Package, arch, version string) Package { p.Arch, p.Version = arch, version; return p }
	for _, tt := range []struct {
		name   string
		list   List
		have   []Package
		extras Extras
		want   bool
	}{
		{"the same", lock, []Package{numpy}, Refused, true},
		{"the same at two places", lock, []Package{numpy, py("numpy", "1.26.4", "b")}, Refused, true},
		{"another spelling", lock, []Package{py("numpy", "1.26.04", "a")}, Refused, true},
		{"nothing there", lock, nil, Allowed, false},
		{"no lock", List{}, []Package{numpy}, Allowed, false},
		{"no lock, no image", List{}, nil, Allowed, false},
		{"unknown version", lock, []Package{py("numpy", "", "a")}, Allowed, false},
		{"wrong beside right", lock, []Package{numpy, py("numpy", "1.26.5", "b")}, Allowed, false},
		{"other ecosystem", lock, []Package{{Ecosystem: Deb, Name: "numpy", Version: "1.26.4"}}, Allowed, false},
		{"extra", lock, []Package{numpy, py("pip", "1", "a")}, Refused, false},
		{"extra, allowed", lock, []Package{numpy, py("pip", "1", "a")}, Allowed, true},
		{"extra, zero value", lock, []Package{numpy, py("pip", "1", "a")}, "", false},
		{"extra, misspelt", lock, []Package{numpy, py("pip", "1", "a")}, "Allowed", false},
		{"extra of another ecosystem", lock, []Package{numpy, zlib}, Refused, true},
		{"optional, there", optional, []Package{numpy}, Refused, true},
		{"optional, of another version", optional, []Package{py("numpy", "1", "a")}, Allowed, false},
		{"optional, absent: nothing compared", optional, nil, Allowed, false},
		{"deb", deb, []Package{libc, zlib}, Refused, true},
		{"deb, any architecture", deb, []Package{libc, other(zlib, "i386", "1.2"), zlib}, Refused, true},
		{"deb, extra architecture", deb, []Package{libc, other(libc, "i386", "2.36"), zlib}, Refused, false},
		{"deb, extra architecture allowed", deb, []Package{libc, other(libc, "i386", "2.35"), zlib}, Allowed, true},
		{"deb, wrong architecture", deb, []Package{other(libc, "i386", "2.36"), zlib}, Allowed, false},
		{"deb, one of two architectures differs", deb, []Package{libc, zlib, other(zlib, "i386", "1.1")}, Allowed, false},
		{"deb, versions are texts", deb, []Package{libc, other(zlib, "amd64", "1.2-0")}, Allowed, false},
	} {
		if got := Compare(tt.list, tt.have, tt.extras); got.OK() != tt.want {
			t.Errorf("%s: OK = %v, want %v: %v", tt.name, got.OK(), tt.want, got)
		}
	}
	if (Difference{}).OK() {
		t.Error("the zero Difference is OK")
	}
}

// A hostile image's difference is still a text that a person can read.
func TestDifferenceStringIsBounded(t *testing.T) {
	var text strings.Builder
	var have []Package
	for i := range 1000 {
		fmt.Fprintf(&text, "missing%d==1\ndiffers%d==1\n", i, i)
		have = append(have, py(fmt.Sprintf("extra%d", i), "1", strings.Repeat("\x1b\n", 200)))
		for range 20 {
			have = append(have, py(fmt.Sprintf("differs%d", i), "2", strings.Repeat("\x1b\n", 200)))
		}
	}
	d := Compare(parsed(t, "pip-freeze", text.String()), have, Refused)
	s := d.String()
	if lines := strings.Count(s, "\n"); lines != 3*(maxShown+1) || len(s) > 1<<20 || strings.Contains(s, "\x1b") {
		t.Errorf("String has %d lines and %d bytes", lines, len(s))
	}
	for _, want := range []string{"1000 missing, 1000 of another version, 1000 extra", "missing  950 more", "differs  950 more", "extra    950 more", "and 12 more"} {
		if !strings.Contains(s, want) {
			t.Errorf("String has no %q", want)
		}
	}
}

func TestWrite(t *testing.T) {
	have := []Package{
		py("zope-interface", "7.2", "a"), py("numpy", "1.26.4", "a"), py("numpy", "1.26.4", "b"), py("old", "2004d_x", "a"),
		{Ecosystem: Deb, Name: "libc6", Arch: "i386", Version: "2.36"}, {Ecosystem: Deb, Name: "libc6", Arch: "amd64", Version: "2.37"},
		{Ecosystem: Conda, Name: "x", Version: "1-0"},
	}
	for ecosystem, want := range map[string]string{
		PyPI: "numpy==1.26.4\nold===2004d_x\nzope-interface==7.2\n",
		Deb:  "libc6:amd64 2.37\nlibc6:i386 2.36\n",
	} {
		if got, err := Write(have, ecosystem); err != nil || string(got) != want {
			t.Errorf("Write(%s) = %q, %v, want %q", ecosystem, got, err, want)
		}
	}
	for _, tt := range []struct {
		have      []Package
		ecosystem string
		want      string
	}{
		{have, Conda, "expected pypi or deb"},
		{have, "", "expected pypi or deb"},
		{nil, PyPI, "no packages of pypi"},
		{[]Package{py("a", "", "here")}, PyPI, "a in here has no version"},
		{append(have, py("numpy", "1.25", "c")), PyPI, "numpy as 1.26.4 in b and as 1.25 in c"},
		{[]Package{py("a", "1\nb==2", "here")}, PyPI, "writing a lock"},
	} {
		if got, err := Write(tt.have, tt.ecosystem); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Write(%s) = %q, %v, want an error with %q", tt.ecosystem, got, err, tt.want)
		}
	}
}
