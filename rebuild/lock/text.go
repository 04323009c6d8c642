package lock

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
)

// lines yields the lines of a text with their numbers from 1, without line ends.
func lines(text []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n := 0
		for line := range bytes.Lines(text) {
			n++
			line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
			if !yield(n, string(line)) {
				return
			}
		}
	}
}

// eachLine calls row for every line that is neither empty nor a comment. A row
// without an ecosystem is none.
func eachLine(text []byte, row func(line string) (Row, error)) ([]Row, error) {
	var rows []Row
	for n, line := range lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := checkLine(line, len(rows)); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		r, err := row(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if r.Ecosystem != "" {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

func checkLine(line string, rows int) error {
	if len(line) > maxLine {
		return fmt.Errorf("has %d bytes, expected at most %d", len(line), maxLine)
	}
	if rows >= maxRows {
		return fmt.Errorf("more than %d packages", maxRows)
	}
	return nil
}

// requirements reads pip's requirements file format as far as it locks.
func requirements(text []byte, env environment) ([]Row, error) {
	var rows []Row
	var joined strings.Builder // a requirement and its continuation lines
	first := 0                 // its line
	flush := func() error {
		line := joined.String()
		joined.Reset()
		if i := comment(line); i >= 0 {
			line = line[:i]
		}
		if line = strings.TrimSpace(line); line == "" {
			return nil
		}
		r, need, err := requirement(line, env)
		if err != nil {
			return fmt.Errorf("line %d: %w", first, err)
		}
		if need != no {
			r.Optional = need == unknown
			rows = append(rows, r)
		}
		return nil
	}
	for n, line := range lines(text) {
		if joined.Len() == 0 {
			first = n
		}
		if err := checkLine(line, len(rows)); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		remark := strings.HasPrefix(strings.TrimSpace(line), "#")
		if cut, more := strings.CutSuffix(line, `\`); more && !remark {
			joined.WriteString(cut + " ")
			if joined.Len() > maxJoined {
				return nil, fmt.Errorf("line %d: with its continuation lines has more than %d bytes", first, maxJoined)
			}
			continue
		}
		joined.WriteString(line)
		if err := flush(); err != nil {
			return nil, err
		}
	}
	return rows, flush()
}

// comment is where pip sees one begin: "#" at the start or after a space.
func comment(line string) int {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return i
		}
	}
	return -1
}

// harmless are the options of a requirements file that change neither where
// packages come from nor which.
var harmless = map[string]bool{
	"--require-hashes": true, "--only-binary": true, "--no-binary": true, "--prefer-binary": true, "--pre": true,
}

const (
	writeLock = "next: write the lock with pip-compile --generate-hashes, or uv export --no-emit-project"
	onlyPins  = "expected name==version --hash=sha256:…; " + writeLock
)

func requirement(line string, env environment) (Row, truth, error) {
	if strings.Contains(line, "${") {
		return Row{}, no, fmt.Errorf("%s takes a variable of the environment; %s", shown(line), onlyPins)
	}
	words := strings.Fields(line)
	if option, _, _ := strings.Cut(words[0], "="); strings.HasPrefix(option, "-") {
		if harmless[option] {
			return Row{}, no, nil
		}
		return Row{}, no, fmt.Errorf("option %s decides where packages come from, which a name and a version do not say; %s", shown(line), onlyPins)
	}
	n := 0
	for n < len(words) && !strings.HasPrefix(words[n], "-") {
		n++
	}
	spec, marker, _ := strings.Cut(strings.Join(words[:n], " "), ";")
	r, err := pin(spec)
	if err != nil {
		return Row{}, no, err
	}
	if r.SHA256s, err = pipHashes(words[n:]); err != nil {
		return Row{}, no, fmt.Errorf("%s: %w", r.Name, err)
	}
	need, err := env.eval(marker)
	return r, need, err
}

// pin reads name[extras]==version. The extras name packages that the lock must
// have lines for, so they are dropped.
func pin(spec string) (Row, error) {
	if strings.ContainsAny(spec, "@/") {
		return Row{}, fmt.Errorf("%s names a place (URL, file or version control), which a name and a version do not say; expected name==version", shown(spec))
	}
	name, version, exact := strings.Cut(spec, "==")
	version, arbitrary := strings.CutPrefix(version, "=")
	name, version = strings.TrimSpace(name), strings.TrimSpace(version)
	if base, extras, has := strings.Cut(name, "["); has {
		if !strings.HasSuffix(extras, "]") {
			return Row{}, fmt.Errorf("%s: extras are not closed", shown(spec))
		}
		name = strings.TrimSpace(base)
	}
	normal, ok := PyPIName(name)
	switch {
	case !exact:
		return Row{}, fmt.Errorf("%s is no exact pin; expected name==version", shown(spec))
	case !ok:
		return Row{}, fmt.Errorf("%s is no name of a package", shown(name))
	}
	_, standard := parse440(version)
	if !arbitrary && !standard {
		return Row{}, fmt.Errorf("%s: %s is no exact version by PEP 440", normal, shown(version))
	}
	if arbitrary && (standard || !goodVersion(version)) {
		return Row{}, fmt.Errorf("%s: ===%s; expected == and a version", normal, shown(version))
	}
	return Row{Ecosystem: PyPI, Name: normal, Version: version}, nil
}

func goodVersion(s string) bool { return len(s) <= maxVersion && anyVersion.MatchString(s) }

// hashSizes are the bytes of the digests that pip accepts.
var hashSizes = map[string]int{"sha256": 32, "sha384": 48, "sha512": 64}

func pipHashes(words []string) ([]hashpipe.Digest, error) {
	var sums []hashpipe.Digest
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if word == "--hash" && len(words) > 0 {
			word, words = "--hash="+words[0], words[1:]
		}
		text, ok := strings.CutPrefix(word, "--hash=")
		if !ok {
			return nil, fmt.Errorf("unexpected %s; expected only --hash=sha256:…", shown(word))
		}
		algorithm, digits, _ := strings.Cut(text, ":")
		raw, err := hex.DecodeString(digits)
		if size := hashSizes[algorithm]; err != nil || size == 0 || len(raw) != size {
			return nil, fmt.Errorf("%s is no sha256, sha384 or sha512", shown(text))
		}
		if algorithm != "sha256" {
			continue
		}
		sum, err := hashpipe.ParseDigest(strings.ToLower(digits))
		if err != nil {
			return nil, err
		}
		sums = append(sums, sum)
	}
	if len(sums) == 0 {
		return nil, errors.New("has no --hash=sha256:…; " + writeLock)
	}
	return sums, nil
}

func pipFreeze(text []byte) ([]Row, error) {
	return eachLine(text, func(line string) (Row, error) {
		if strings.HasPrefix(line, "-") {
			return Row{}, fmt.Errorf("%s is not a package by name and version (editable?); expected name==version", shown(line))
		}
		if strings.ContainsAny(line, "[;") {
			return Row{}, fmt.Errorf("%s has extras or a marker, which pip freeze does not print; expected name==version", shown(line))
		}
		return pin(line)
	})
}

var (
	// condaURL is the end of a package's URL: /platform/file#hash.
	condaURL   = regexp.MustCompile(`^https?://[^\s#?]+/([a-z0-9-]+)/([^/\s#?]+?)(?:\.conda|\.tar\.bz2)#(?:([0-9a-f]{32})|(?:sha256:)?([0-9a-f]{64}))$`)
	condaName  = regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]*$`)
	condaPart  = regexp.MustCompile(`^[A-Za-z0-9_.!+]+$`)
	userInfo   = regexp.MustCompile(`^https?://[^/]*@`)
	debName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)
	debArch    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
	debVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+:~-]*$`)
)

func condaExplicit(text []byte) ([]Row, error) {
	explicit := false
	rows, err := eachLine(text, func(line string) (Row, error) {
		if line == "@EXPLICIT" {
			if explicit {
				return Row{}, errors.New("@EXPLICIT a second time")
			}
			explicit = true
			return Row{}, nil
		}
		if !explicit {
			return Row{}, fmt.Errorf("%s stands before @EXPLICIT; next: conda list --explicit --md5", shown(line))
		}
		return condaRow(line)
	})
	if err == nil && !explicit {
		err = errors.New("has no line @EXPLICIT; next: conda list --explicit --md5")
	}
	return rows, err
}

func condaRow(line string) (Row, error) {
	if userInfo.MatchString(line) {
		return Row{}, errors.New("the URL holds a user name or a password; next: remove it, and change it where it is valid")
	}
	m := condaURL.FindStringSubmatch(line)
	if m == nil {
		return Row{}, fmt.Errorf("%s is not a package's http(s) URL with #md5 or #sha256; next: conda list --explicit --md5", shown(line))
	}
	platform, file := m[1], m[2]
	if platform != "noarch" && !strings.HasPrefix(platform, "linux-") {
		return Row{}, fmt.Errorf("%s is for %s; expected linux or noarch", shown(file), platform)
	}
	r, ok := condaPackage(file)
	if !ok {
		return Row{}, fmt.Errorf("%s is not name-version-build", shown(file))
	}
	if m[4] != "" {
		sum, err := hashpipe.ParseDigest(m[4])
		if err != nil {
			return Row{}, err
		}
		r.SHA256s = []hashpipe.Digest{sum}
	}
	return r, nil
}

// condaPackage splits name-version-build; only the name may have more dashes.
func condaPackage(s string) (Row, bool) {
	b := strings.LastIndexByte(s, '-')
	if b < 0 {
		return Row{}, false
	}
	v := strings.LastIndexByte(s[:b], '-')
	if v < 0 {
		return Row{}, false
	}
	name, version, build := s[:v], s[v+1:b], s[b+1:]
	ok := len(s) <= maxVersion && condaName.MatchString(name) && condaPart.MatchString(version) && condaPart.MatchString(build)
	return Row{Ecosystem: Conda, Name: name, Version: version + "-" + build}, ok
}

func dpkgList(text []byte) ([]Row, error) {
	return eachLine(text, func(line string) (Row, error) {
		words := strings.Fields(line)
		if len(words) == 1 {
			words = strings.SplitN(line, "=", 2)
		}
		if len(words) != 2 {
			return Row{}, fmt.Errorf("%s: expected package[:arch] version; next: dpkg-query -W", shown(line))
		}
		name, arch, has := strings.Cut(words[0], ":")
		if !goodDeb(name, arch, words[1]) || has && arch == "" {
			return Row{}, fmt.Errorf("%s is no package and version of Debian; next: dpkg-query -W", shown(line))
		}
		return Row{Ecosystem: Deb, Name: name, Arch: arch, Version: words[1]}, nil
	})
}

func goodDeb(name, arch, version string) bool {
	return len(name) <= maxVersion && debName.MatchString(name) &&
		(arch == "" || len(arch) <= maxVersion && debArch.MatchString(arch)) &&
		len(version) <= maxVersion && debVersion.MatchString(version)
}
