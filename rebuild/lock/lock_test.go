package lock

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	sumA = "143ca03b9574912ebea2c492b945e59911b865193df28351b0dc42a798a1b6de"
	sumB = "3475b31adab1ef12e49597451eabf7f1a65479789f0603d3909ccb44202d41b9"
	md5  = "d41d8cd98f00b204e9800998ecf8427e"
)

func TestParseRefuses(t *testing.T) {
	hash := " --hash=sha256:" + sumA
	uv := "version = 1\n[[package]]\nname = 'app'\nversion = '1'\nsource = { virtual = '.' }\n"
	registry := "source = { registry = 'https://index.example/simple' }\nsdist = { hash = 'sha256:" + sumA + "' }\n"
	pylock := "lock-version = '1.0'\ncreated-by = 'x'\n"
	archive := "archive = { hashes = { sha256 = '" + sumA + "' } }\n"
	for _, tt := range []struct{ format, text, want string }{
		{"", "a==1", "expected one of requirements"},
		{"pipfile", "a==1", "expected one of requirements"},

		{"requirements", "", "names no package"},
		{"requirements", "# nothing\n\n", "names no package"},
		{"requirements", "a==1", "line 1: a: has no --hash=sha256"},
		{"requirements", "\n\na==1 \\\n", "line 3: a: has no --hash=sha256"},
		{"requirements", "a" + hash, "line 1: a is no exact pin"},
		{"requirements", "a>=1" + hash, "no exact pin"},
		{"requirements", "a~=1" + hash, "no exact pin"},
		{"requirements", "a==1.*" + hash, "no exact version"},
		{"requirements", "a==1,<2" + hash, "no exact version"},
		{"requirements", "a>=1,==2" + hash, "no name"},
		{"requirements", "a!=1" + hash, "no exact pin"},
		{"requirements", "a===1.0" + hash, "expected =="},
		{"requirements", "a==" + hash, "no exact version"},
		{"requirements", "==1" + hash, "no name"},
		{"requirements", "a b==1" + hash, "no name"},
		{"requirements", "a[x==1" + hash, "extras are not closed"},
		{"requirements", "ä==1" + hash, "no name"},
		{"requirements", "a==1" + hash + "\nA==2" + hash, "a has two versions, 1 and 2"},
		{"requirements", "a==1" + hash + "\n-r other.txt", "line 2: option -r other.txt"},
		{"requirements", "--requirement=other.txt", "line 1: option"},
		{"requirements", "-c constraints.txt", "line 1: option"},
		{"requirements", "-e .", "line 1: option -e ."},
		{"requirements", "-i https://index.example", "line 1: option"},
		{"requirements", "--index-url https://index.example", "line 1: option"},
		{"requirements", "--extra-index-url=https://index.example", "line 1: option"},
		{"requirements", "--find-links ./wheels", "line 1: option"},
		{"requirements", "--trusted-host index.example", "line 1: option"},
		{"requirements", "a @ https://files.example/a.whl" + hash, "names a place"},
		{"requirements", "a@file:///a.whl" + hash, "names a place"},
		{"requirements", "git+https://git.example/a" + hash, "names a place"},
		{"requirements", "./a-1.whl" + hash, "names a place"},
		{"requirements", "a==${VERSION}" + hash, "variable of the environment"},
		{"requirements", "a==1 --hash=md5:" + md5, "is no sha256"},
		{"requirements", "a==1 --hash=sha256:" + sumA[1:], "is no sha256"},
		{"requirements", "a==1 --hash=sha512:" + sumA + sumB, "has no --hash=sha256"},
		{"requirements", "a==1" + hash + " --config-settings x", "unexpected --config-settings"},
		{"requirements", "a==1" + hash + " # \n b==1", "line 2: b: has no"},
		{"requirements", "a==1 ; python_version" + hash, "marker"},
		{"requirements", "a==1 ; colour == 'red'" + hash, "unknown variable colour"},
		{"requirements", "a==1 ; os_name == 'nt'" + hash, "names no package"},
		{"requirements", "a==1 ; python_version < '3.9'" + hash + "\na==2 ; python_version >= '3.9'" + hash, "two versions, 1 and 2; next: lock one of them (its markers do not decide it"},
		{"requirements", "a==1" + hash + "\x00", "not UTF-8"},
		{"requirements", "a==1\xff" + hash, "not UTF-8"},
		{"requirements", "\ufeffa==1" + hash, "no name"},
		{"requirements", "a==1\x1b[31m" + hash, `\x1b[31m`},
		{"requirements", strings.Repeat("a", maxLine+1), "line 1: has 65537 bytes"},
		{"requirements", strings.Repeat(strings.Repeat("a", maxLine-1)+"\\\n", 20), "continuation lines"},

		{"pip-freeze", "", "names no package"},
		{"pip-freeze", "a==1\nb", "line 2: b is no exact pin"},
		{"pip-freeze", "a @ file:///src/a", "line 1: a @ file:///src/a names a place"},
		{"pip-freeze", "-e git+https://git.example/a@4b825dc6#egg=a", "editable"},
		{"pip-freeze", "a[b]==1", "extras"},
		{"pip-freeze", "a==1 ; os_name == 'nt'", "marker"},
		{"pip-freeze", "a==1\na==1.0.1", "two versions"},
		{"pip-freeze", "a==1 --hash=sha256:" + sumA, "no exact version"},
		{"pip-freeze", strings.Repeat("a==1\n", maxRows+1), "more than 100000 packages"},

		{"conda-explicit", "", "@EXPLICIT"},
		{"conda-explicit", "@EXPLICIT\n", "names no package"},
		{"conda-explicit", "https://conda.example/c/noarch/a-1-0.conda#" + md5, "line 1: https://conda.example/c/noarch/a-1-0.conda#" + md5 + " stands before @EXPLICIT"},
		{"conda-explicit", "@EXPLICIT\n@EXPLICIT", "second time"},
		{"conda-explicit", "@EXPLICIT\nhttps://conda.example/c/noarch/a-1-0.conda", "#md5 or #sha256"},
		{"conda-explicit", "@EXPLICIT\nhttps://conda.example/c/noarch/a-1-0.conda#" + md5[1:], "#md5 or #sha256"},
		{"conda-explicit", "@EXPLICIT\nhttps://conda.example/c/noarch/a-1-0.tar.gz#" + md5, "#md5 or #sha256"},
		{"conda-explicit", "@EXPLICIT\nfile:///c/noarch/a-1-0.conda#" + md5, "#md5 or #sha256"},
		{"conda-explicit", "@EXPLICIT\nhttps://u:p@conda.example/c/noarch/a-1-0.conda#" + md5, "password"},
		{"conda-explicit", "@EXPLICIT\nhttps://conda.example/c/osx-64/a-1-0.conda#" + md5, "is for osx-64"},
		{"conda-explicit", "@EXPLICIT\nhttps://conda.example/c/noarch/a-1.conda#" + md5, "name-version-build"},
		{"conda-explicit", "@EXPLICIT\nhttps://conda.example/c/noarch/a-1-0.conda#" + md5 + "\nhttps://conda.example/c/noarch/a-1-1.conda#" + md5, "a has two versions, 1-0 and 1-1"},

		{"dpkg", "", "names no package"},
		{"dpkg", "libc6", "line 1: libc6: expected package"},
		{"dpkg", "ii  libc6:amd64  2.36-9  amd64  GNU C Library", "expected package"},
		{"dpkg", "Libc6 2.36-9", "no package and version"},
		{"dpkg", "libc6: 2.36-9", "no package and version"},
		{"dpkg", "libc6=", "no package and version"},
		{"dpkg", "libc6 2.36_9", "no package and version"},
		{"dpkg", "libc6:amd64 2.36-9\nlibc6:amd64 2.36-10", "two versions, 2.36-9 and 2.36-10"},
		{"dpkg", "libc6:amd64 2.36-9\nlibc6 2.36-9", "with and without an architecture"},

		{"uv", "", "version 0, expected 1"},
		{"uv", "version = 2", "version 2, expected 1"},
		{"uv", "version = 1", "no project"},
		{"uv", "{}", "toml: line 1"},
		{"uv", "version = 1\nversion = 1", "version"},
		{"uv", "version = 'x\x1b'", `\`},
		{"uv", uv[:strings.Index(uv, "version = '1'")], "no project"},
		{"uv", uv + "dependencies = [{ name = 'a' }]", "app depends on a, which the lock does not have"},
		{"uv", uv + "dependencies = [{ name = 'a', version = '2' }]\n[[package]]\nname='a'\nversion='1'\n" + registry, "depends on a 2"},
		{"uv", uv + "dependencies = [{ name = 'a', marker = 'red' }]\n[[package]]\nname='a'\nversion='1'\n" + registry, "marker red"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='1'\nsource = { git = 'https://git.example/a#4b825dc6' }", "a: comes from git"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='1'\nsource = { directory = '../a' }", "a: comes from directory"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='1'\nsource = { editable = '../a' }", "a: comes from editable"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='1'\nsource = { registry = 'https://index.example' }", "no sha256"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='1'\n", "0 sources"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='one'\n" + registry, "no version"},
		{"uv", uv + "dependencies = [{ name = 'a' }]\n[[package]]\nname='a'\nversion='1'\n" + registry + "[[package]]\nname='A'\nversion='2'\n" + registry, "a has two versions, 1 and 2"},
		{"uv", uv + strings.Repeat("[[package]]\nname='a'\n", 65), "65 times"},

		{"pylock", "", "lock-version"},
		{"pylock", "lock-version = '2.0'\ncreated-by = 'x'", "lock-version is 2.0, expected 1.0"},
		{"pylock", "lock-version = '1.0'", "created-by"},
		{"pylock", pylock, "names no package"},
		{"pylock", "environments = [\"sys_platform == 'win32'\"]\n" + pylock, "none of its environments"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\n" + archive, "no version"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\nversion = '1'\nvcs = { type = 'git', commit-id = '4b825dc6' }", "version control"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\nversion = '1'\ndirectory = { path = '.' }", "version control or a directory"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\nversion = '1'\narchive = { hashes = { md5 = '" + md5 + "' } }", "no sha256"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\nversion = '1'\narchive = { hashes = { sha256 = '" + md5 + "' } }", "sha256 " + md5},
		{"pylock", pylock + "[[packages]]\nname = '-'\nversion = '1'\n" + archive, "no name"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\nversion = '1'\nmarker = 'x'\n" + archive, "marker x"},
		{"pylock", pylock + "[[packages]]\nname = 'a'\nversion = '1'\n" + archive + "[[packages]]\nname = 'a'\nversion = '2'\nmarker = \"'x' in extras\"\n" + archive, "two versions"},
	} {
		list, err := Parse(tt.format, []byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q, %.120q) = %v, %v, want an error with %q", tt.format, tt.text, list, err, tt.want)
			continue
		}
		if len(list.rows) != 0 || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("Parse(%q, %.120q) = %d rows, error %q", tt.format, tt.text, len(list.rows), err)
		}
	}
	if _, err := ParseFor("pip-freeze", []byte("a==1"), "2.7"); err == nil || !strings.Contains(err.Error(), "expected one like 3.11") {
		t.Errorf("ParseFor(python 2.7) = %v, want a refusal", err)
	}
}

// Texts that cost more than they are long, up to the whole stack, which ends the
// process, are refused by counting, before they are parsed.
func TestParseRefusesCostlyTexts(t *testing.T) {
	const n = 1 << 20
	for name, text := range map[string]string{
		"arrays in each other":         "a=" + strings.Repeat("[", n),
		"arrays after strings":         "a=['\\', \"\\\"\", '''''', \"\"\"\\\"\"\"\"\", " + strings.Repeat("[", n),
		"tables in each other":         "a=" + strings.Repeat("{a=", n),
		"dotted key":                   strings.Repeat("a.", n) + "a=1",
		"many tables":                  strings.Repeat("[a]\n", maxTOMLWeight/4+1),
		"many dotted tables":           strings.Repeat("[a.a.a.a.a.a]\n", maxTOMLWeight/24+1),
		"dotted headers":               strings.Repeat("["+strings.Repeat("a.", 100)+"a]\n", 1000),
		"many values":                  "a=[" + strings.Repeat("1,", maxTOMLWeight) + "]",
		"brackets after a comment":     "# ]]]]\na=" + strings.Repeat("[", n),
		"brackets after half a string": "a='\n" + strings.Repeat("[", n),
		"too long":                     strings.Repeat("\n", maxTOML+1),
	} {
		for _, format := range []string{"uv", "pylock"} {
			if _, err := Parse(format, []byte(text)); err == nil || !strings.Contains(err.Error(), "expected at most") {
				t.Errorf("%s: Parse(%q) = %v, want a refusal by its bounds", name, format, err)
			}
		}
	}
	for _, format := range Formats() {
		if _, err := Parse(format, make([]byte, maxText+1)); err == nil || !strings.Contains(err.Error(), "expected at most 67108864") {
			t.Errorf("Parse(%q, 64 MiB and one byte) = %v", format, err)
		}
	}
}

// rowsText shows rows in a form that a test can be read by.
func rowsText(l List) string {
	var b strings.Builder
	for _, r := range l.Rows() {
		b.WriteString(r.Ecosystem + " " + r.String())
		if r.Optional {
			b.WriteString(" optional")
		}
		if n := len(r.SHA256s); n > 0 {
			b.WriteString(" " + strings.Repeat("#", n))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestParse(t *testing.T) {
	freeze := "# comment\nNumPy==1.26.4\r\n\nzope.interface==7.2\nmy_pkg===2004d_beta-x\n"
	dpkg := "libc6:amd64\t2.36-9+deb12u10\nlibc6:i386 2.36-9+deb12u10\n# comment\ng++=4:12.2.0-3\nadduser   3.134\n"
	for _, tt := range []struct {
		format, python string
		text           []byte
		want           string
	}{
		{"requirements", "", testdata(t, "requirements.txt"), `pypi click 8.2.1 ##
pypi numpy 2.3.2 #
pypi tomli 2.2.1 optional #
pypi torch 2.7.1+cpu #
pypi uvicorn 0.35.0 #
pypi zope-interface 7.2 #
`},
		{"requirements", "3.11", testdata(t, "requirements.txt"), `pypi click 8.2.1 ##
pypi numpy 2.3.2 #
pypi torch 2.7.1+cpu #
pypi uvicorn 0.35.0 #
pypi zope-interface 7.2 #
`},
		{"requirements", "", []byte("a==1 --hash=sha256:" + sumA + "\nA==1 --hash=sha256:" + sumB), "pypi a 1 ##\n"},
		{"requirements", "", []byte("a==1 ; python_version < '3.9' --hash=sha256:" + sumA + "\na==1 --hash=sha256:" + sumB), "pypi a 1 ##\n"},
		{"requirements", "", []byte("a==1 --hash=sha256:" + sumA + "\na==1 ; python_version < '3.9' --hash=sha256:" + sumB), "pypi a 1 ##\n"},
		{"pip-freeze", "", []byte(freeze), "pypi my-pkg 2004d_beta-x\npypi numpy 1.26.4\npypi zope-interface 7.2\n"},
		{"conda-explicit", "", testdata(t, "explicit.txt"), `conda _libgcc_mutex 0.1-conda_forge
conda ca-certificates 2025.8.3-hbd8a1cb_0
conda libblas 3.9.0-34_h59b9bed_openblas
conda numpy 1.26.4-py311h64a7726_0 #
conda python 3.11.13-h9e4cc4f_0_cpython #
conda tzdata 2025b-h78e105d_0
`},
		{"dpkg", "", []byte(dpkg), "deb adduser 3.134\ndeb g++ 4:12.2.0-3\ndeb libc6:amd64 2.36-9+deb12u10\ndeb libc6:i386 2.36-9+deb12u10\n"},
		{"uv", "3.11", testdata(t, "uv.lock"), `pypi acme-langid 1.2.0 optional
pypi click 8.2.1 ##
pypi iniconfig 2.1.0 optional ##
pypi matplotlib 3.10.5 optional ###
pypi numpy 2.3.2 ###
pypi nvidia-nccl-cu12 2.26.2 #
pypi pytest 8.4.1 optional ##
pypi torch 2.7.1 ##
pypi typing-extensions 4.14.1 ##
pypi uvicorn 0.35.0 ##
pypi uvloop 0.21.0 ###
`},
		{"uv", "3.10", testdata(t, "uv.lock"), `pypi acme-langid 1.2.0 optional
pypi click 8.2.1 ##
pypi exceptiongroup 1.3.0 optional ##
pypi iniconfig 2.1.0 optional ##
pypi matplotlib 3.10.5 optional ###
pypi numpy 2.2.6 ##
pypi nvidia-nccl-cu12 2.26.2 #
pypi pytest 8.4.1 optional ##
pypi torch 2.7.1 ##
pypi typing-extensions 4.14.1 ##
pypi uvicorn 0.35.0 ##
pypi uvloop 0.21.0 ###
`},
		{"uv", "", []byte("version = 1\n[manifest]\nrequirements = [{ name = 'a' }]\n[[package]]\nname = 'a'\nversion = '1'\nsource = { url = 'https://files.example/a.whl' }\nwheels = [{ hash = 'sha256:" + sumA + "' }]\n"), "pypi a 1 #\n"},
		{"pylock", "", testdata(t, "pylock.toml"), `pypi attrs 25.1.0 #
pypi matplotlib 3.10.5 optional #
pypi numpy 2.3.2 #
pypi pytest 8.4.1 optional #
pypi tomli 2.2.1 optional #
pypi torch 2.7.1+cpu #
`},
		{"pylock", "3.10", testdata(t, "pylock.toml"), `pypi attrs 25.1.0 #
pypi matplotlib 3.10.5 optional #
pypi numpy 2.3.2 #
pypi pytest 8.4.1 optional #
pypi tomli 2.2.1 #
pypi torch 2.7.1+cpu #
`},
	} {
		list, err := ParseFor(tt.format, tt.text, tt.python)
		if got := rowsText(list); err != nil || got != tt.want {
			t.Errorf("ParseFor(%q, python %q) = %v\n%s\nwant\n%s", tt.format, tt.python, err, got, tt.want)
		}
	}
}

// A fork is decided by the image's Python or not at all.
func TestParseRefusesAFork(t *testing.T) {
	_, err := Parse("uv", testdata(t, "uv.lock"))
	if want := "numpy has two versions, 2.2.6 and 2.3.2; next: lock one of them (its markers do not decide it"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Parse(uv.lock with a fork) = %v, want %q", err, want)
	}
}

// The digests of a row are those of the text.
func TestParseKeepsDigests(t *testing.T) {
	list, err := Parse("requirements", []byte("b==1 --hash=sha256:"+sumB+" --hash sha256:"+strings.ToUpper(sumA)+" --hash=sha256:"+sumB))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range list.Rows()[0].SHA256s {
		got = append(got, d.String())
	}
	if want := []string{sumA, sumB}; !slices.Equal(got, want) {
		t.Errorf("digests = %v, want %v", got, want)
	}
	for format, file := range map[string]string{"uv": "uv.lock", "pylock": "pylock.toml", "requirements": "requirements.txt", "conda-explicit": "explicit.txt"} {
		text := testdata(t, file)
		list, err := ParseFor(format, text, "3.11")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range list.Rows() {
			for _, d := range r.SHA256s {
				n++
				if !bytes.Contains(text, []byte(d.String())) {
					t.Errorf("%s: %s has %v, which the text has not", file, r, d)
				}
			}
		}
		if n == 0 {
			t.Errorf("%s: no digest", file)
		}
	}
}
