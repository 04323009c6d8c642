package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a directory of files: path to content. "-> target" is a link.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		at := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func metadata(name, version string) string {
	return "Metadata-Version: 2.1\nName: " + name + "\nVersion: " + version + "\nSummary: x\n\nName: body\nVersion: 9\n"
}

func condaMeta(name, version, build string) string {
	return fmt.Sprintf(`{"build": %q, "files": ["lib/x"], "name": %q, "paths_data": {"paths": []}, "version": %q, "unknown": [{}]}`, build, name, version)
}

func stanza(name, arch, version, status string) string {
	s := "Package: " + name + "\n"
	if status != "" {
		s += "Status: " + status + "\n"
	}
	return s + "Architecture: " + arch + "\nVersion: " + version + "\nConffiles:\n /etc/x 0\nDescription: x\n Version: 9\n .\n text\n"
}

// An image with something of every kind, in the usual and in odd places.
func TestInstalled(t *testing.T) {
	root := tree(t, map[string]string{
		"usr/lib/python3/dist-packages/PyYAML-6.0.dist-info/METADATA":             metadata("PyYAML", "6.0"),
		"usr/lib/python3/dist-packages/six-1.16.0.egg-info/PKG-INFO":              metadata("six", "1.16.0"),
		"usr/lib/python3/dist-packages/sympy-1.11.1.egg-info":                     metadata("sympy", "1.11.1"),
		"usr/lib/python3/dist-packages/zipped-2.0-py3.11.egg":                     "PK",
		"usr/lib/python3/dist-packages/unzipped-3.0-py3.11.egg/EGG-INFO/PKG-INFO": metadata("unzipped", "3.0"),
		"usr/lib/python3.11/os.py":                                                "",
		"usr/lib/python3.11/test/__init__.py":                                     "",
		"usr/lib/python3.11/test/data/bait-1-py3.6.egg":                           "PK",
		// A virtual environment, with links that Python follows.
		"opt/venv/lib64": "-> lib",
		"opt/venv/lib/python3.11/site-packages/numpy-1.26.4.dist-info/METADATA":                           metadata("numpy", "1.26.4"),
		"opt/venv/lib/python3.11/site-packages/linked-1.0.dist-info/METADATA":                             "-> ../../../../../../store/linked",
		"opt/venv/lib/python3.11/site-packages/absolute-1.0.dist-info/METADATA":                           "-> /store/absolute",
		"opt/venv/lib/python3.11/site-packages/whole-1.0.dist-info":                                       "-> /store/whole",
		"opt/venv/lib/python3.11/site-packages/setuptools/__init__.py":                                    "",
		"opt/venv/lib/python3.11/site-packages/setuptools/_vendor/wheel-0.43.dist-info/METADATA":          metadata("wheel", "0.43"),
		"opt/venv/lib/python3.11/site-packages/setuptools/env/site-packages/inner-1.0.dist-info/METADATA": metadata("inner", "1.0"),
		"store/linked":         metadata("linked", "1.0"),
		"store/absolute":       metadata("absolute", "1.0"),
		"store/whole/METADATA": metadata("whole", "1.0"),
		// pip install --target.
		"srv/deps/torch-2.7.1+cpu.dist-info/METADATA": metadata("torch", "2.7.1+cpu"),
		"srv/deps/nothing-1.0.dist-info/RECORD":       "",
		"srv/deps/dangling-1.0.dist-info/METADATA":    "-> /nowhere",
		// Conda, with its cache.
		"opt/conda/conda-meta/numpy-1.26.4-py311h64a7726_0.json":                                     condaMeta("numpy", "1.26.4", "py311h64a7726_0"),
		"opt/conda/conda-meta/history":                                                               "not json",
		"opt/conda/lib/python3.11/os.py":                                                             "",
		"opt/conda/lib/python3.11/site-packages/numpy-1.26.4.dist-info/METADATA":                     metadata("numpy", "1.26.4"),
		"opt/conda/pkgs/numpy-1.26.0-0/lib/python3.11/site-packages/numpy-1.26.0.dist-info/METADATA": metadata("numpy", "1.26.0"),
		"opt/conda/envs/two/conda-meta/numpy-1.25.0-py311_0.json":                                    condaMeta("numpy", "1.25.0", "py311_0"),
		"var/lib/dpkg/status":                                                                        stanza("libc6", "amd64", "2.36-9", "install ok installed") + "\n\n" + stanza("libc6", "i386", "2.36-9", "hold ok unpacked") + "\n" + stanza("gone", "all", "1", "deinstall ok config-files") + "\nPackage: never\nStatus: unknown ok not-installed\n",
		"var/lib/dpkg/status.d/tzdata":                                                               stanza("tzdata", "all", "2024a-0", ""),
		"var/lib/dpkg/status.d/tzdata.md5sums":                                                       "d41d8cd98f00b204e9800998ecf8427e  usr/share/zoneinfo\n",
	})
	have, err := Installed(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range have {
		got = append(got, p.Ecosystem+" "+p.String()+" "+p.Path)
	}
	want := []string{
		"conda numpy 1.25.0-py311_0 opt/conda/envs/two/conda-meta/numpy-1.25.0-py311_0.json",
		"conda numpy 1.26.4-py311h64a7726_0 opt/conda/conda-meta/numpy-1.26.4-py311h64a7726_0.json",
		"deb libc6:amd64 2.36-9 var/lib/dpkg/status",
		"deb libc6:i386 2.36-9 var/lib/dpkg/status",
		"deb tzdata:all 2024a-0 var/lib/dpkg/status.d/tzdata",
		"pypi absolute 1.0 opt/venv/lib/python3.11/site-packages/absolute-1.0.dist-info",
		"pypi dangling of unknown version srv/deps/dangling-1.0.dist-info",
		"pypi inner 1.0 opt/venv/lib/python3.11/site-packages/setuptools/env/site-packages/inner-1.0.dist-info",
		"pypi linked 1.0 opt/venv/lib/python3.11/site-packages/linked-1.0.dist-info",
		"pypi nothing of unknown version srv/deps/nothing-1.0.dist-info",
		"pypi numpy 1.26.4 opt/conda/lib/python3.11/site-packages/numpy-1.26.4.dist-info",
		"pypi numpy 1.26.4 opt/venv/lib/python3.11/site-packages/numpy-1.26.4.dist-info",
		"pypi pyyaml 6.0 usr/lib/python3/dist-packages/PyYAML-6.0.dist-info",
		"pypi six 1.16.0 usr/lib/python3/dist-packages/six-1.16.0.egg-info",
		"pypi sympy 1.11.1 usr/lib/python3/dist-packages/sympy-1.11.1.egg-info",
		"pypi torch 2.7.1+cpu srv/deps/torch-2.7.1+cpu.dist-info",
		"pypi unzipped 3.0 usr/lib/python3/dist-packages/unzipped-3.0-py3.11.egg",
		"pypi whole 1.0 opt/venv/lib/python3.11/site-packages/whole-1.0.dist-info",
		"pypi zipped 2.0 usr/lib/python3/dist-packages/zipped-2.0-py3.11.egg",
		"python python 3.11 opt/conda/lib/python3.11",
		"python python 3.11 usr/lib/python3.11",
	}
	if !slices.Equal(got, want) {
		t.Errorf("Installed =\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := Python(have); got != "3.11" {
		t.Errorf("Python = %q, want 3.11", got)
	}
	if got := Python(append(have, Package{Ecosystem: python, Version: "3.12"})); got != "" {
		t.Errorf("Python of two = %q, want none", got)
	}
}

func TestInstalledRefuses(t *testing.T) {
	const dir = "opt/site-packages/a-1.dist-info"
	deep := strings.Repeat("d/", 300) + "f"
	sparse := func(path string, size int64) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			if err := os.Truncate(filepath.Join(root, path), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	node := func(path string, mode uint32) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			at := filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mknod(at, mode|0o644, int(unix.Mkdev(1, 5))); err != nil { // 1, 5 is /dev/zero
				t.Fatalf("making %s: %v (run the tests as root)", path, err)
			}
		}
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		more  func(*testing.T, string)
		want  string
	}{
		{"METADATA is a FIFO", nil, node(dir+"/METADATA", unix.S_IFIFO), dir + "/METADATA is a FIFO"},
		{"METADATA is an endless device", nil, node(dir+"/METADATA", unix.S_IFCHR), "is a device"},
		{"METADATA is a directory", map[string]string{dir + "/METADATA/x": ""}, nil, "is a directory"},
		{"METADATA leads to a FIFO", map[string]string{dir + "/METADATA": "-> /fifo"}, node("fifo", unix.S_IFIFO), "is a FIFO"},
		{"METADATA in a circle", map[string]string{dir + "/METADATA": "-> METADATA"}, nil, "symbolic link in a circle"},
		{"egg-info is a FIFO", nil, node("opt/a.egg-info", unix.S_IFIFO), "opt/a.egg-info is a FIFO"},
		{"METADATA of a terabyte", map[string]string{dir + "/METADATA": metadata("a", "1")[:10]}, sparse(dir+"/METADATA", 1<<40), "header has more than 1048576 bytes"},
		{"METADATA is one long header", map[string]string{dir + "/METADATA": "Name: a\nVersion: 1\n" + strings.Repeat("Classifier: x\n", 1<<17)}, nil, "header has more than 1048576 bytes"},
		{"no name", map[string]string{dir + "/METADATA": "Version: 1\n\nName: a\n"}, nil, `Name is "", expected`},
		{"a name twice", map[string]string{dir + "/METADATA": "Name: a\nname: b\nVersion: 1\n"}, nil, "field name twice"},
		{"a version twice", map[string]string{dir + "/METADATA": "Name: a\nVersion: 1\nVersion: 2\n"}, nil, "field version twice"},
		{"a path as name", map[string]string{dir + "/METADATA": metadata("../../x", "1")}, nil, "Name is ../../x"},
		{"escape codes as version", map[string]string{dir + "/METADATA": metadata("a", "1\x1b[2J")}, nil, `Version of a is "1\x1b[2J"`},
		{"escape codes as path", map[string]string{"opt/\x1b[2J/a.dist-info/METADATA": metadata("-", "1")}, nil, `opt/\x1b[2J/a.dist-info/METADATA`},
		{"a directory named like nothing", map[string]string{"opt/-.dist-info/x": ""}, nil, "holds no METADATA or PKG-INFO"},
		{"directories in each other", map[string]string{deep: ""}, nil, "at most 256 directories in each other"},

		{"conda: not JSON", map[string]string{"c/conda-meta/a.json": "{"}, nil, "c/conda-meta/a.json"},
		{"conda: a name twice", map[string]string{"c/conda-meta/a.json": `{"name":"a","name":"b","version":"1","build":"0"}`}, nil, "duplicate"},
		{"conda: brackets", map[string]string{"c/conda-meta/a.json": `{"x":` + strings.Repeat("[", 1<<20)}, nil, "depth"},
		{"conda: no version", map[string]string{"c/conda-meta/a.json": `{"name":"a","build":"0"}`}, nil, "expected a package of Conda"},
		{"conda: dashes", map[string]string{"c/conda-meta/a.json": condaMeta("a", "1-2", "0")}, nil, "expected a package of Conda"},
		{"conda: 65 MiB", map[string]string{"c/conda-meta/a.json": "{"}, sparse("c/conda-meta/a.json", 65<<20), "has more than 67108864 bytes"},
		{"conda: a FIFO", nil, node("c/conda-meta/a.json", unix.S_IFIFO), "is a FIFO"},

		{"dpkg: a FIFO", nil, node("var/lib/dpkg/status", unix.S_IFIFO), "var/lib/dpkg/status is a FIFO"},
		{"dpkg: a circle", map[string]string{"var/lib/dpkg": "-> dpkg"}, nil, "in a circle"},
		{"dpkg: 65 MiB", map[string]string{"var/lib/dpkg/status": ""}, sparse("var/lib/dpkg/status", 65<<20), "has more than 67108864 bytes"},
		{"dpkg: a state", map[string]string{"var/lib/dpkg/status": stanza("a", "all", "1", "install ok perfect")}, nil, "status install ok perfect is not known"},
		{"dpkg: a short state", map[string]string{"var/lib/dpkg/status": stanza("a", "all", "1", "installed")}, nil, "1 words, expected 3"},
		{"dpkg: no version", map[string]string{"var/lib/dpkg/status": "Package: a\nStatus: install ok installed\n"}, nil, `version ""`},
		{"dpkg: two versions", map[string]string{"var/lib/dpkg/status": stanza("a", "all", "1\nVersion: 2", "install ok installed")}, nil, "field version twice"},
		{"dpkg: a package named like an option", map[string]string{"var/lib/dpkg/status": stanza("--x", "all", "1", "install ok installed")}, nil, "package --x"},
		{"distroless: a directory", map[string]string{"var/lib/dpkg/status.d/a/b": ""}, nil, "status.d/a is a directory"},
		{"distroless: a FIFO", nil, node("var/lib/dpkg/status.d/a", unix.S_IFIFO), "status.d/a is a FIFO"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			if tt.more != nil {
				tt.more(t, root)
			}
			have, err := Installed(context.Background(), root)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Installed = %v, %v, want an error with %q", have, err, tt.want)
			}
			if have != nil || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("Installed = %v, error %q", have, err)
			}
		})
	}
	if _, err := Installed(context.Background(), "testdata/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Installed of nothing = %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	if have, err := Installed(context.Background(), link); err == nil {
		t.Errorf("Installed of a link = %v, want a refusal", have)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Installed(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("Installed with a cancelled context = %v", err)
	}
}

// Nothing outside of the image is read, whatever its links say.
func TestInstalledStaysInside(t *testing.T) {
	outside := tree(t, map[string]string{
		"METADATA":    metadata("secret", "1"),
		"status":      stanza("secret", "all", "1", "install ok installed"),
		"secret.json": condaMeta("secret", "1", "0"),
	})
	back := strings.Repeat("../", 30) + outside[1:]
	root := tree(t, map[string]string{
		"site-packages/a-1.dist-info/METADATA": "-> " + outside + "/METADATA",
		"site-packages/b-1.dist-info/METADATA": "-> " + back + "/METADATA",
		"site-packages/c-1.dist-info":          "-> " + outside,
		"site-packages/d-1.dist-info/METADATA": "-> /proc/self/root" + outside + "/METADATA",
		"site-packages/e-1.egg-info":           "-> " + outside + "/METADATA",
		"elsewhere":                            "-> " + outside,
		"var/lib/dpkg":                         "-> " + outside,
	})
	have, err := Installed(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range have {
		if p.Version != "" || p.Name == "secret" {
			t.Errorf("found %v in %s, which is outside", p, p.Path)
		}
	}
	if len(have) != 5 {
		t.Errorf("found %v, want a to e without a version", have)
	}
	// A mount within the tree is outside too.
	mount := filepath.Join(root, "mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(outside, mount, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind mount: %v (run the tests as root)", err)
	}
	defer unix.Unmount(mount, unix.MNT_DETACH)
	if have, err := Installed(context.Background(), root); err == nil || !strings.Contains(err.Error(), "another file system") {
		t.Errorf("Installed with a mount inside = %v, %v", have, err)
	}
}

// The bounds of a whole image, made small.
func TestInstalledIsBounded(t *testing.T) {
	files := map[string]string{}
	for i := range 50 {
		files[fmt.Sprintf("site-packages/p%d-1.dist-info/METADATA", i)] = metadata(fmt.Sprintf("p%d", i), "1")
		files[fmt.Sprintf("var/lib/dpkg/status.d/p%d", i)] = stanza(fmt.Sprintf("p%d", i), "all", "1", "")
	}
	root := tree(t, files)
	enough := bounds{names: 1000, waiting: 1 << 20, packages: 100, read: 1 << 20}
	if have, err := installed(context.Background(), root, enough); err != nil || len(have) != 100 {
		t.Fatalf("installed = %d packages, %v", len(have), err)
	}
	// Names are kept only until their directory is done.
	dirs := map[string]string{}
	for i := range 50 {
		dirs[fmt.Sprintf("x/d%d/f", i)], dirs[fmt.Sprintf("y/d%d/f", i)] = "", ""
	}
	if have, err := installed(context.Background(), tree(t, dirs), bounds{names: 1000, waiting: 1200, packages: 1, read: 1}); err != nil {
		t.Errorf("installed of two directories = %v, %v", have, err)
	}
	for _, tt := range []struct {
		change func(*bounds)
		want   string
	}{
		{func(b *bounds) { b.names = 99 }, "more than 99 names"},
		{func(b *bounds) { b.waiting = 500 }, "more than 500 bytes"},
		{func(b *bounds) { b.packages = 49 }, "more than 49 packages"},
		{func(b *bounds) { b.packages = 99 }, "more than 99 packages"},
		{func(b *bounds) { b.read = 1000 }, "more than 1000 bytes"},
	} {
		most := enough
		tt.change(&most)
		if have, err := installed(context.Background(), root, most); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("installed(%+v) = %d packages, %v, want %q", most, len(have), err, tt.want)
		}
	}
}

// debian copies what this machine's Debian packages say of themselves into the
// tree of an image.
func debian(t *testing.T) string {
	t.Helper()
	const packages = "usr/lib/python3/dist-packages"
	found, err := filepath.Glob("/" + packages + "/*.*-info")
	if err != nil || len(found) == 0 {
		t.Fatalf("no Python packages in /%s (%v): apt-get install python3-yaml python3-six python3-numpy", packages, err)
	}
	root := tree(t, map[string]string{packages + "/README": ""})
	args := append([]string{"-a", "--target-directory", filepath.Join(root, packages)}, found...)
	if out, err := exec.Command("cp", args...).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "/var/lib/dpkg/status", filepath.Join(root, "var/lib/dpkg")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s: apt-get install dpkg", err, out)
	}
	return root
}

func output(t *testing.T, hint, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil || len(out) == 0 {
		t.Fatalf("%s %q: %v: apt-get install %s", name, args, err, hint)
	}
	return string(out)
}

// importlib.metadata and dpkg-query say the same of a real image.
func TestInstalledOfDebian(t *testing.T) {
	root := debian(t)
	have, err := Installed(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ ecosystem, oracle string }{
		{PyPI, output(t, "python3", "/usr/bin/python3", "-I", "-c", `
import importlib.metadata, re, sys
for d in importlib.metadata.distributions(path=[sys.argv[1]]):
    print(re.sub("[-_.]+", "-", d.metadata["Name"]).lower(), d.version)`, filepath.Join(root, "usr/lib/python3/dist-packages"))},
		{Deb, output(t, "dpkg", "dpkg-query", "--admindir", filepath.Join(root, "var/lib/dpkg"), "-W", "-f", `${db:Status-Status} ${Package}:${Architecture} ${Version}\n`)},
	} {
		var want []string
		for line := range strings.Lines(tt.oracle) {
			words := strings.Fields(line)
			if tt.ecosystem == Deb {
				if words[0] == "config-files" || words[0] == "not-installed" {
					continue
				}
				words = words[1:]
			}
			want = append(want, strings.Join(words, " "))
		}
		var got []string
		for _, p := range have {
			if p.Ecosystem == tt.ecosystem {
				got = append(got, p.String())
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if len(got) < 2 || !slices.Equal(got, want) {
			t.Errorf("%s: Installed =\n%s\nwant\n%s", tt.ecosystem, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}

	// dpkg-query's own listing is a lock of the image it was made in.
	list, err := Parse("dpkg", []byte(output(t, "dpkg", "dpkg-query", "--admindir", filepath.Join(root, "var/lib/dpkg"), "-W")))
	if err != nil {
		t.Fatal(err)
	}
	if d := Compare(list, have, Refused); !d.OK() {
		t.Errorf("dpkg-query -W against its own image: %v", d)
	}
	// And so is what Write makes of it.
	text, err := Write(have, Deb)
	if err != nil {
		t.Fatal(err)
	}
	if list, err = Parse("dpkg", text); err != nil || !Compare(list, have, Refused).OK() {
		t.Errorf("Write(deb) against its own image: %v, %v", err, Compare(list, have, Refused))
	}
	// One package less in the image is noticed, and one more, and another version.
	changed := slices.Clone(have)
	changed = slices.DeleteFunc(changed, func(p Package) bool { return p.Ecosystem == Deb && p.Name == "dpkg" })
	changed = append(changed, Package{Ecosystem: Deb, Name: "extra", Arch: "all", Version: "1", Path: "x"})
	for i := range changed {
		if changed[i].Name == "tar" && changed[i].Ecosystem == Deb {
			changed[i].Version = "0"
		}
	}
	if d := Compare(list, changed, Refused); len(d.Missing) != 1 || len(d.Extra) != 1 || len(d.Differ) != 1 || d.OK() {
		t.Errorf("Compare with three changes = %v", d)
	}
}
