package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// pkg is a package of the repository, parsed and checked.
type pkg struct {
	module, path, dir string
	fset              *token.FileSet
	types             *types.Package
	info              *types.Info
	names             []string // absolute paths of its files
	syntax            []*ast.File
	src               map[string][]byte
	imports           types.Importer
}

type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
	Module                  *struct{ Path string }
}

// load reads the package in a folder below root, as the go command builds it.
func load(root, folder string) (*pkg, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,Module", "./"+folder, "os", "strconv", "sync/atomic")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list ./%s: %w\n%s", folder, err, stderr.Bytes())
	}
	exports := map[string]string{}
	var last listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := dec.Decode(&l); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		exports[l.ImportPath] = l.Export
		if l.Module != nil && l.Dir == filepath.Join(root, folder) {
			last = l
		}
	}
	if last.Dir == "" {
		return nil, fmt.Errorf("go list ./%s did not name the package in that folder", folder)
	}
	p := &pkg{module: last.Module.Path, path: last.ImportPath, dir: last.Dir, fset: token.NewFileSet(), src: map[string][]byte{}}
	p.imports = importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, name := range last.GoFiles {
		name = filepath.Join(last.Dir, name)
		src, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(p.fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		p.names, p.src[name], p.syntax = append(p.names, name), src, append(p.syntax, file)
	}
	p.info = &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	p.types, err = (&types.Config{Importer: p.imports}).Check(p.path, p.fset, p.syntax, p.info)
	return p, err
}

// find returns every mutant of the package's files that match the patterns;
// no pattern means all files.
func (p *pkg) find(root string, patterns []string) []*mutant {
	var all []*mutant
	for i, name := range p.names {
		base := filepath.Base(name)
		if len(patterns) > 0 && !slices.ContainsFunc(patterns, func(pat string) bool { ok, _ := filepath.Match(pat, base); return ok }) {
			continue
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			panic(err)
		}
		f := &finder{pkg: p, file: rel, src: p.src[name], syntax: p.syntax[i]}
		all = append(all, f.find()...)
	}
	return all
}

// render plants mutants into the text [start, end) of src. Spans are those of
// syntax nodes, so two of them nest or are apart.
func render(src []byte, start, end int, mutants []*mutant) string {
	var out strings.Builder
	for at := start; ; {
		// The next outermost one: the first to start, the longest of these.
		var outer *mutant
		for _, m := range mutants {
			if m.start >= at && m.end <= end && (outer == nil || m.start < outer.start || m.start == outer.start && m.end > outer.end) {
				outer = m
			}
		}
		if outer == nil {
			out.Write(src[at:end])
			return out.String()
		}
		var inside, same []*mutant
		for _, m := range mutants {
			if m.start == outer.start && m.end == outer.end {
				same = append(same, m)
			} else if m.start >= outer.start && m.end <= outer.end {
				inside = append(inside, m)
			}
		}
		out.Write(src[at:outer.start])
		text := render(src, outer.start, outer.end, inside)
		for _, m := range same {
			text = m.wrap(m.id, text)
		}
		out.WriteString(text)
		at = outer.end
	}
}

// runtime stands in each package with mutants. A process reads the number of
// the mutant that is on from its environment; or it appends the number of each
// mutant that it passes to a file.
const runtime = `package %s

import (
	"os"
	"strconv"
	"sync/atomic"
)

var mutantActive, mutantSeen = mutantBegin()

type mutantRecord struct {
	file *os.File
	seen [%d]atomic.Bool
}

func mutantBegin() (int, *mutantRecord) {
	active, _ := strconv.Atoi(os.Getenv("MUTANT"))
	name := os.Getenv("MUTANT_SEEN")
	if name == "" {
		return active, nil
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return active, nil
	}
	return active, &mutantRecord{file: file}
}

func mutantOn(id int) bool {
	if mutantSeen != nil && !mutantSeen.seen[id].Swap(true) {
		mutantSeen.file.WriteString(strconv.Itoa(id) + "\n")
	}
	return id == mutantActive
}

func mutantErr(id int, err error) error {
	if mutantOn(id) {
		return nil
	}
	return err
}

func mutantAlt[T any](id int, one, other T) T {
	if mutantOn(id) {
		return other
	}
	return one
}
`

var mention = regexp.MustCompile(`mutant(?:On|Err|Alt)\((\d+)`)

// plant writes the package's files with the mutants in them into dir, and
// returns the overlay for the go command and the mutants that compile.
func (p *pkg) plant(root, dir string, mutants []*mutant) (map[string]string, []*mutant, error) {
	size := 0
	for _, m := range mutants {
		size = max(size, m.id+1)
	}
	mutants = slices.Clone(mutants)
	for {
		texts := map[string]string{}
		for _, name := range p.names {
			var here []*mutant
			for _, m := range mutants {
				if filepath.Join(root, m.file) == name {
					here = append(here, m)
				}
			}
			if len(here) > 0 {
				texts[name] = render(p.src[name], 0, len(p.src[name]), here)
			}
		}
		texts[filepath.Join(p.dir, "mutant_runtime.go")] = fmt.Sprintf(runtime, p.types.Name(), size)
		wrong, err := p.check(texts)
		if err != nil {
			return nil, nil, err
		}
		if len(wrong) > 0 {
			mutants = slices.DeleteFunc(mutants, func(m *mutant) bool { return wrong[m.id] })
			continue
		}
		overlay := map[string]string{}
		for name, text := range texts {
			file := filepath.Join(dir, filepath.Base(name))
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				return nil, nil, err
			}
			overlay[name] = file
		}
		return overlay, mutants, nil
	}
}

// check returns the mutants that the compiler would not take: those that the
// line of an error mentions.
func (p *pkg) check(texts map[string]string) (map[int]bool, error) {
	fset := token.NewFileSet()
	var files []*ast.File
	names := slices.Clone(p.names)
	names = append(names, filepath.Join(p.dir, "mutant_runtime.go"))
	for _, name := range names {
		text, ok := texts[name]
		if !ok {
			text = string(p.src[name])
		}
		file, err := parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("a mutant does not parse: %w", err)
		}
		files = append(files, file)
	}
	wrong := map[int]bool{}
	var lost error
	conf := types.Config{Importer: p.imports, Error: func(err error) {
		te := err.(types.Error)
		pos := fset.Position(te.Pos)
		lines := strings.Split(texts[pos.Filename], "\n")
		if pos.Line > len(lines) {
			lost = err
			return
		}
		line := lines[pos.Line-1]
		// The one whose planting begins last before the error, else all of the line.
		before := mention.FindAllStringSubmatch(line[:min(len(line), pos.Column-1)], -1)
		all := mention.FindAllStringSubmatch(line, -1)
		switch {
		case len(before) > 0:
			id, _ := strconv.Atoi(before[len(before)-1][1])
			wrong[id] = true
		case len(all) > 0:
			for _, one := range all {
				id, _ := strconv.Atoi(one[1])
				wrong[id] = true
			}
		default:
			lost = err
		}
	}}
	conf.Check(p.path, fset, files, nil)
	if len(wrong) == 0 && lost != nil {
		return nil, fmt.Errorf("the package does not compile with its mutants: %w", lost)
	}
	return wrong, nil
}
