package lock

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// fuzz looks for a text that panics, or whose rows do not survive being written
// and read again.
func fuzz(f *testing.F, format string, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s), "3.11")
		f.Add([]byte(s), "")
	}
	f.Fuzz(func(t *testing.T, text []byte, python string) {
		list, err := ParseFor(format, text, python)
		if err != nil {
			if len(list.rows) != 0 || len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\n\x00") {
				t.Fatalf("ParseFor = %v, error %q", list, err)
			}
			return
		}
		rows := list.Rows()
		if len(rows) == 0 {
			t.Fatal("no rows and no error")
		}
		var have []Package
		for _, r := range rows {
			have = append(have, Package{Ecosystem: r.Ecosystem, Name: r.Name, Arch: r.Arch, Version: r.Version, Path: "x"})
		}
		if d := Compare(list, have, Refused); !d.OK() {
			t.Fatalf("the rows differ from themselves: %v", d)
		}
		if got, want := again(t, list, have), plain(rows); !slices.Equal(got, want) {
			t.Fatalf("written and read again: %q, want %q", got, want)
		}
	})
}

func plain(rows []Row) []string {
	var out []string
	for _, r := range rows {
		out = append(out, r.Ecosystem+" "+r.String())
	}
	return out
}

// again writes the packages of a list and parses the text.
func again(t *testing.T, list List, have []Package) []string {
	t.Helper()
	format := map[string]string{PyPI: "pip-freeze", Deb: "dpkg", Conda: "conda-explicit"}[list.Ecosystem()]
	var text []byte
	var err error
	if format == "conda-explicit" {
		text = []byte("@EXPLICIT\n")
		for _, p := range have {
			text = append(text, "https://conda.example/channel/noarch/"+p.Name+"-"+p.Version+".conda#"+md5+"\n"...)
		}
	} else if text, err = Write(have, list.Ecosystem()); err != nil {
		t.Fatal(err)
	}
	second, err := Parse(format, text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return plain(second.Rows())
}

func FuzzRequirements(f *testing.F) {
	fuzz(f, "requirements", string(testdata(f, "requirements.txt")), "a[b]===2004d_x ; os_name == 'posix' --hash=sha256:"+sumA)
}

func FuzzPipFreeze(f *testing.F) {
	fuzz(f, "pip-freeze", "numpy==1.26.4\nA.b==1!2.0rc1.post3.dev4+x_y\nold===2004d_x\n")
}

func FuzzCondaExplicit(f *testing.F) { fuzz(f, "conda-explicit", string(testdata(f, "explicit.txt"))) }

func FuzzDpkg(f *testing.F) { fuzz(f, "dpkg", "libc6:amd64\t2.36-9+deb12u10\ng++=4:12.2.0-3\n") }

func FuzzUV(f *testing.F) {
	fuzz(f, "uv", string(testdata(f, "uv.lock")), "version = 1\n[manifest]\nrequirements = [{ name = 'a', extra = ['b'] }]\n[[package]]\nname = 'a'\nversion = '1'\nsource = { path = 'a.whl' }\nsdist = { hash = 'sha256:"+sumA+"' }\n")
}

func FuzzPylock(f *testing.F) { fuzz(f, "pylock", string(testdata(f, "pylock.toml"))) }

// A marker is never understood in two ways: what holds for an unknown Python
// holds for each.
func FuzzMarker(f *testing.F) {
	f.Add("python_version < '3.11' and (os_name == 'nt' or 'x' in extras)", uint8(11))
	f.Add("'3.8' <= python_full_version or python_version ~= '3.9'", uint8(8))
	f.Add("python_full_version != '3.11.*' and python_version not in '3.1'", uint8(1))
	f.Fuzz(func(t *testing.T, marker string, minor uint8) {
		any3, err := newEnvironment("")
		if err != nil {
			t.Fatal(err)
		}
		one, err := newEnvironment("3." + strconv.Itoa(int(minor)))
		if err != nil {
			t.Fatal(err)
		}
		wide, errWide := any3.eval(marker)
		narrow, errNarrow := one.eval(marker)
		if (errWide == nil) != (errNarrow == nil) {
			t.Fatalf("eval(%q) fails for one Python only: %v, %v", marker, errWide, errNarrow)
		}
		if errWide == nil && wide != unknown && wide != narrow {
			t.Fatalf("eval(%q) = %d for any Python and %d for 3.%d", marker, wide, narrow, minor)
		}
	})
}

// Normalising a version a second time changes nothing.
func FuzzVersion(f *testing.F) {
	for _, s := range []string{"1.0", "v1!2.0.0-ALPHA_3.post-4.dev05+Ubuntu-01", "1-1", "1.0rev"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, ok := parse440(s)
		if !ok {
			return
		}
		text := v.public
		if v.local != "" {
			text += "+" + v.local
		}
		if again, ok := parse440(text); !ok || again != v {
			t.Fatalf("parse440(%q) = %v, and of that %v, %v", s, v, again, ok)
		}
		if !matches440(s, s) {
			t.Fatalf("%q does not match itself", s)
		}
	})
}

// The header of a METADATA or a dpkg stanza, whatever its bytes.
func FuzzStanzas(f *testing.F) {
	f.Add([]byte(stanza("libc6", "amd64", "2.36-9", "install ok installed") + "\n" + stanza("tzdata", "all", "2024a-0", "")))
	f.Add([]byte(metadata("PyYAML", "6.0")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := search{most: wide}
		if err := s.stanzas(b, "status"); err != nil && len(err.Error()) > 2000 {
			t.Fatalf("error of %d bytes", len(err.Error()))
		}
		for _, p := range s.found {
			if !goodDeb(p.Name, p.Arch, p.Version) {
				t.Fatalf("found %+v", p)
			}
		}
		if p, err := pythonMetadata(b); err == nil {
			if name, ok := PyPIName(p.Name); !ok || name != p.Name || p.Version != "" && !goodVersion(p.Version) {
				t.Fatalf("found %+v", p)
			}
		}
	})
}
