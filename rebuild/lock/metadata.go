package lock

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sys/unix"
)

// python reads a *.dist-info, *.egg-info or *.egg.
func (s *search) python(path string) error {
	base := path[strings.LastIndexByte(path, '/')+1:]
	candidates := []string{path + "/METADATA"}
	switch {
	case strings.HasSuffix(base, ".egg-info"):
		candidates = []string{path + "/PKG-INFO", path}
	case strings.HasSuffix(base, ".egg"):
		candidates = []string{path + "/EGG-INFO/PKG-INFO"}
	}
	for _, at := range candidates {
		b, err := s.file(at, maxMetadata)
		if absent(err) || at == path && err != nil && s.isDir(path) {
			continue
		}
		if err != nil {
			return err
		}
		p, err := pythonMetadata(b)
		if err != nil {
			return fmt.Errorf("%s: %w", shown(at), err)
		}
		p.Path = path
		return s.add(p)
	}
	// Something is called like a package and does not say what it is. By its name
	// alone it is still told to the reader, with no version that could match; a
	// zipped egg has its version in its name, name-version-py3.11.egg.
	parts := strings.Split(base[:strings.LastIndexByte(base, '.')], "-")
	normal, ok := PyPIName(parts[0])
	if !ok {
		return fmt.Errorf("%s holds no METADATA or PKG-INFO; next: remove it from the image", shown(path))
	}
	p := Package{Ecosystem: PyPI, Name: normal, Path: path}
	if strings.HasSuffix(base, ".egg") && len(parts) > 1 && goodVersion(parts[1]) {
		p.Version = parts[1]
	}
	return s.add(p)
}

func (s *search) isDir(path string) bool {
	f, err := s.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// pythonMetadata reads Name and Version of core metadata: the header of a mail
// message, whose body may be long and is not looked at.
func pythonMetadata(b []byte) (Package, error) {
	stanza, _, whole := header(b)
	if !whole && len(b) > maxMetadata {
		return Package{}, fmt.Errorf("its header has more than %d bytes", maxMetadata)
	}
	f, err := fields(stanza, "name", "version")
	if err != nil {
		return Package{}, err
	}
	name, ok := PyPIName(f["name"])
	if !ok {
		return Package{}, fmt.Errorf("field Name is %s, expected a package's name", shown(f["name"]))
	}
	if f["version"] != "" && !goodVersion(f["version"]) {
		return Package{}, fmt.Errorf("field Version of %s is %s, expected a version", name, shown(f["version"]))
	}
	return Package{Ecosystem: PyPI, Name: name, Version: f["version"]}, nil
}

// header returns b up to its first empty line, what comes behind that line, and
// whether there is one.
func header(b []byte) (head, rest []byte, whole bool) {
	at := 0
	for line := range bytes.Lines(b) {
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return b[:at], b[at+len(line):], true
		}
		at += len(line)
	}
	return b, nil, false
}

// fields reads the named fields (in lower case) of one stanza of "Field: value"
// lines. Twice the same field is an error.
func fields(stanza []byte, names ...string) (map[string]string, error) {
	f := map[string]string{}
	for line := range bytes.Lines(stanza) {
		if line[0] == ' ' || line[0] == '\t' {
			continue // of the field before; none of the named has several lines
		}
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(key) > 64 {
			continue
		}
		k := strings.ToLower(string(key))
		for _, name := range names {
			if k != name {
				continue
			}
			if _, twice := f[name]; twice {
				return nil, fmt.Errorf("has the field %s twice", name)
			}
			f[name] = string(bytes.TrimSpace(value))
		}
	}
	return f, nil
}

func (s *search) condaMeta(path string) error {
	b, err := s.file(path, maxDatabase)
	if err != nil {
		return err
	}
	if len(b) > maxDatabase {
		return fmt.Errorf("%s has more than %d bytes", shown(path), maxDatabase)
	}
	var m struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		Build   string `json:"build"`
	}
	if err := json.Unmarshal(b, &m, jsontext.AllowInvalidUTF8(true)); err != nil {
		return fmt.Errorf("%s: %s", shown(path), shown(err.Error()))
	}
	r, ok := condaPackage(m.Name + "-" + m.Version + "-" + m.Build)
	if !ok || r.Name != m.Name {
		return fmt.Errorf("%s: name %s, version %s, build %s; expected a package of Conda", shown(path), shown(m.Name), shown(m.Version), shown(m.Build))
	}
	return s.add(Package{Ecosystem: Conda, Name: r.Name, Version: r.Version, Path: path})
}

// dpkgDir is dpkg's database. Images without a package manager (distroless)
// have one file for each package in status.d instead of the file status.
const dpkgDir = "var/lib/dpkg"

func (s *search) dpkg() error {
	b, err := s.file(dpkgDir+"/status", maxDatabase)
	if err == nil {
		err = s.stanzas(b, dpkgDir+"/status")
	}
	if err != nil && !absent(err) {
		return err
	}
	dir, err := s.open(dpkgDir+"/status.d", unix.O_RDONLY|unix.O_DIRECTORY)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(2*s.most.packages + 2) // a package has two files
	dir.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s/status.d: %w", dpkgDir, err)
	}
	if len(names) > 2*s.most.packages {
		return fmt.Errorf("the image has more than %d packages", s.most.packages)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".md5sums") {
			continue
		}
		at := dpkgDir + "/status.d/" + name
		b, err := s.file(at, maxDatabase)
		if err == nil {
			err = s.stanzas(b, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stanzas reads a dpkg database: the packages whose files are there, whatever
// became of their set-up scripts.
func (s *search) stanzas(b []byte, path string) error {
	if len(b) > maxDatabase {
		return fmt.Errorf("%s has more than %d bytes", shown(path), maxDatabase)
	}
	for len(b) > 0 {
		var stanza []byte
		if stanza, b, _ = header(b); len(stanza) == 0 {
			continue
		}
		f, err := fields(stanza, "package", "version", "architecture", "status")
		if err != nil {
			return fmt.Errorf("%s: package %s: %w", shown(path), shown(f["package"]), err)
		}
		there, err := unpacked(f["status"])
		if err != nil {
			return fmt.Errorf("%s: package %s: %w", shown(path), shown(f["package"]), err)
		}
		if !there {
			continue
		}
		if !goodDeb(f["package"], f["architecture"], f["version"]) {
			return fmt.Errorf("%s: package %s, architecture %s, version %s; expected a package of Debian",
				shown(path), shown(f["package"]), shown(f["architecture"]), shown(f["version"]))
		}
		err = s.add(Package{Ecosystem: Deb, Name: f["package"], Arch: f["architecture"], Version: f["version"], Path: path})
		if err != nil {
			return err
		}
	}
	return nil
}

// unpacked reads dpkg's Status, "want flag state". Without one (distroless) the
// package is there.
func unpacked(status string) (bool, error) {
	words := strings.Fields(status)
	if len(words) == 0 {
		return true, nil
	}
	switch words[len(words)-1] {
	case "installed", "unpacked", "half-configured", "half-installed", "triggers-awaited", "triggers-pending":
		return len(words) == 3, wantThree(words)
	case "config-files", "not-installed":
		return false, wantThree(words)
	}
	return false, fmt.Errorf("status %s is not known", shown(status))
}

func wantThree(words []string) error {
	if len(words) != 3 {
		return fmt.Errorf("status has %d words, expected 3", len(words))
	}
	return nil
}
