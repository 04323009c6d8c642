package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// A mutant is one fault that can be planted: it replaces the bytes [start, end)
// of a file by what wrap makes of them. wrap gets the text with the mutants
// inside of it already planted, so that all of them stand in one program and
// the environment says which one is on.
type mutant struct {
	id         int
	pkg        string // import path
	file       string // below the root of the repository
	line       int
	fn         string // "(*Store).Admit"
	op         string // "check removed"
	text       string // the source that it changes, on one line
	nth        int    // of those with the same file, function, op and text; from 1
	start, end int
	wrap       func(id int, inner string) string
}

// name identifies a mutant for as long as the function and the changed text
// stay; lines above it may come and go.
func (m *mutant) name() string {
	s := m.file + " | " + m.fn + " | " + m.op + " | " + m.text
	if m.nth > 1 {
		s += fmt.Sprintf(" | %d", m.nth)
	}
	return s
}

// Calls whose loss no test can see, or only after very many of them: locks and
// logs, pools, and descriptors that the collector closes.
var unseen = []string{"Lock", "Unlock", "RLock", "RUnlock", "Close", "Put", "KeepAlive", "Debug", "Info", "Warn", "Error", "Log", "LogAttrs", "Printf", "Println", "Fprintf", "Fprintln", "panic"}

// Functions whose result is words for people.
var wordsOnly = []string{"String", "Error", "GoString", "LogValue"}

// finder collects the mutants of one file.
type finder struct {
	pkg    *pkg
	file   string
	src    []byte
	syntax *ast.File
	fn     string
	found  []*mutant
	skip   map[ast.Node]bool // not to be mutated, nor anything in it
	done   map[ast.Expr]bool // constants inside a larger one
	guard  map[ast.Expr]bool // conditions with a mutant of their own
}

func (f *finder) offset(p token.Pos) int { return f.pkg.fset.Position(p).Offset }
func (f *finder) source(n ast.Node) string {
	return string(f.src[f.offset(n.Pos()):f.offset(n.End())])
}

func (f *finder) add(n ast.Node, op string, wrap func(id int, inner string) string) {
	text := strings.Join(strings.Fields(f.source(n)), " ")
	if r := []rune(text); len(r) > 90 {
		text = string(r[:87]) + "..."
	}
	m := &mutant{
		pkg: f.pkg.path, file: f.file, line: f.pkg.fset.Position(n.Pos()).Line, fn: f.fn, op: op, text: text,
		start: f.offset(n.Pos()), end: f.offset(n.End()), wrap: wrap, nth: 1,
	}
	for _, o := range f.found {
		if o.fn == m.fn && o.op == m.op && o.text == m.text {
			m.nth++
		}
	}
	f.found = append(f.found, m)
}

// The five shapes of a planted fault. on(id) is true if this mutant is the one.
func negate(id int, s string) string  { return fmt.Sprintf("(mutantOn(%d) != (%s))", id, s) }
func falsify(id int, s string) string { return fmt.Sprintf("(!mutantOn(%d) && (%s))", id, s) }
func satisfy(id int, s string) string { return fmt.Sprintf("(mutantOn(%d) || (%s))", id, s) }
func drop(id int, s string) string    { return fmt.Sprintf("if !mutantOn(%d) { %s }", id, s) }
func noError(id int, s string) string { return fmt.Sprintf("mutantErr(%d, %s)", id, s) }
func instead(alternative string) func(int, string) string {
	return func(id int, s string) string { return fmt.Sprintf("mutantAlt(%d, %s, %s)", id, s, alternative) }
}

// insteadBool evaluates one of the two only.
func insteadBool(alternative string) func(int, string) string {
	return func(id int, s string) string {
		return fmt.Sprintf("(mutantOn(%d) && (%s) || !mutantOn(%d) && (%s))", id, alternative, id, s)
	}
}

// find returns every fault that could be planted in the functions of a file.
func (f *finder) find() []*mutant {
	for _, d := range f.syntax.Decls {
		fd, ok := d.(*ast.FuncDecl)
		if !ok || fd.Body == nil || slices.Contains(wordsOnly, fd.Name.Name) {
			continue
		}
		f.fn = fd.Name.Name
		if fd.Recv != nil {
			f.fn = "(" + f.source(fd.Recv.List[0].Type) + ")." + f.fn
		}
		f.skip, f.done, f.guard = map[ast.Node]bool{}, map[ast.Expr]bool{}, map[ast.Expr]bool{}
		f.function(fd.Type, fd.Body)
	}
	return f.found
}

func (f *finder) function(typ *ast.FuncType, body *ast.BlockStmt) {
	ast.Inspect(body, func(n ast.Node) bool {
		if n == nil || f.skip[n] {
			return false
		}
		if lit, ok := n.(*ast.FuncLit); ok {
			f.function(lit.Type, lit.Body) // its results are its own
			return false
		}
		f.node(n, typ)
		return true
	})
}

func (f *finder) isBool(e ast.Expr) bool {
	t := f.pkg.info.TypeOf(e)
	b, ok := t.(*types.Basic)
	return ok && b.Info()&types.IsBoolean != 0 && f.pkg.info.Types[e].Value == nil
}

// integer tells whether e is an integer, constant or not.
func (f *finder) integer(e ast.Expr) bool {
	t := f.pkg.info.TypeOf(e)
	if t == nil {
		return false
	}
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsInteger != 0
}

func (f *finder) constant(e ast.Expr) bool { return f.pkg.info.Types[e].Value != nil }

// pure tells whether e can be evaluated twice.
func (f *finder) pure(e ast.Expr) bool {
	ok := true
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			tv := f.pkg.info.Types[n.Fun]
			ok = ok && (tv.IsType() || tv.IsBuiltin())
		case *ast.FuncLit:
			ok = false
		case *ast.UnaryExpr:
			ok = ok && n.Op != token.ARROW
		}
		return ok
	})
	return ok
}

// leaves tells whether a block ends by leaving: return, break, continue.
func leaves(b *ast.BlockStmt) bool {
	if len(b.List) == 0 {
		return false
	}
	switch b.List[len(b.List)-1].(type) {
	case *ast.ReturnStmt, *ast.BranchStmt:
		return true
	}
	return false
}

var otherOperator = map[token.Token]token.Token{
	token.ADD: token.SUB, token.SUB: token.ADD, token.MUL: token.QUO, token.QUO: token.MUL, token.REM: token.QUO,
	token.AND: token.OR, token.OR: token.AND, token.AND_NOT: token.AND, token.XOR: token.OR,
	token.ADD_ASSIGN: token.SUB_ASSIGN, token.SUB_ASSIGN: token.ADD_ASSIGN,
	token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.LAND: token.LOR, token.LOR: token.LAND,
}

func (f *finder) node(n ast.Node, typ *ast.FuncType) {
	switch n := n.(type) {
	case *ast.IfStmt:
		if n.Else == nil && leaves(n.Body) {
			f.guard[n.Cond] = true
			f.add(n.Cond, "check removed", falsify)
		} else if f.plain(n.Cond) {
			f.add(n.Cond, "condition negated", negate)
		}
	case *ast.SwitchStmt:
		if n.Tag == nil {
			for _, c := range n.Body.List {
				for _, e := range c.(*ast.CaseClause).List {
					if f.isBool(e) {
						f.guard[e] = true
						f.add(e, "case removed", falsify)
					}
				}
			}
		}
	case *ast.ForStmt:
		if n.Cond != nil && f.plain(n.Cond) {
			f.add(n.Cond, "condition negated", negate)
		}
	case *ast.BlockStmt:
		f.statements(n.List)
	case *ast.ReturnStmt:
		f.results(n, typ)
	case *ast.BranchStmt:
		if n.Label == nil && (n.Tok == token.CONTINUE || n.Tok == token.BREAK) {
			other := "break"
			if n.Tok == token.BREAK {
				other = "continue"
			}
			f.add(n, "loop control", func(id int, s string) string {
				return fmt.Sprintf("if mutantOn(%d) { %s }; %s", id, other, s)
			})
		}
	case *ast.CallExpr:
		if name := callee(n); name == "Errorf" || name == "Sprintf" || name == "New" && f.isErrorsNew(n) || name == "panic" || slices.Contains(unseen, name) {
			for _, a := range n.Args {
				f.skip[a] = true
			}
		}
	case *ast.ArrayType:
		if n.Len != nil {
			f.skip[n.Len] = true
		}
	case *ast.GenDecl:
		if n.Tok == token.CONST || n.Tok == token.TYPE {
			f.skip[n] = true
			for _, s := range n.Specs {
				f.skip[s] = true
			}
		}
	case *ast.CompositeLit:
		if _, ok := f.pkg.info.TypeOf(n).Underlying().(*types.Struct); !ok {
			for _, e := range n.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					f.done[kv.Key] = true
				}
			}
		}
	case *ast.CommClause:
		f.statements(n.Body)
	case *ast.CaseClause:
		f.statements(n.Body)
		for _, e := range n.List {
			if f.constant(e) && !f.enumerated(e) {
				f.done[e] = true
			}
		}
	case ast.Expr:
		f.expression(n)
	}
}

// plain is a condition that no other operator would change: neither a
// comparison nor one made of several.
func (f *finder) plain(e ast.Expr) bool {
	switch e := ast.Unparen(e).(type) {
	case *ast.BinaryExpr:
		return false
	case *ast.UnaryExpr:
		return e.Op != token.NOT
	}
	return f.isBool(e)
}

func callee(c *ast.CallExpr) string {
	switch fun := ast.Unparen(c.Fun).(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		return fun.Sel.Name
	}
	return ""
}

func (f *finder) isErrorsNew(c *ast.CallExpr) bool {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == "errors"
}

// statements are those of a block: the ones that can be dropped.
func (f *finder) statements(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt:
			if c, ok := s.X.(*ast.CallExpr); ok && !slices.Contains(unseen, callee(c)) {
				f.add(s, "statement dropped", drop)
			}
		case *ast.DeferStmt:
			if !slices.Contains(unseen, callee(s.Call)) {
				f.add(s, "statement dropped", drop)
			}
		case *ast.GoStmt:
			f.add(s, "statement dropped", drop)
		case *ast.IncDecStmt:
			f.add(s, "statement dropped", drop)
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE || f.source(s.Lhs[0]) == "_" {
				continue
			}
			f.add(s, "statement dropped", drop)
			if other, ok := otherOperator[s.Tok]; ok && f.integer(s.Lhs[0]) {
				text := f.source(s.Lhs[0]) + " " + other.String() + " " + f.source(s.Rhs[0])
				f.add(s, s.Tok.String()+" to "+other.String(), func(id int, orig string) string {
					return fmt.Sprintf("if mutantOn(%d) { %s } else { %s }", id, text, orig)
				})
			}
		}
	}
}

// results are those of a return: an error that is kept back, a verdict turned.
func (f *finder) results(n *ast.ReturnStmt, typ *ast.FuncType) {
	if typ.Results == nil || len(n.Results) == 0 {
		return
	}
	var want []types.Type
	for _, field := range typ.Results.List {
		for range max(1, len(field.Names)) {
			want = append(want, f.pkg.info.TypeOf(field.Type))
		}
	}
	if len(want) != len(n.Results) {
		return // return f()
	}
	last := len(n.Results) - 1
	withError := types.Identical(want[last], types.Universe.Lookup("error").Type()) && f.source(n.Results[last]) != "nil"
	for i, e := range n.Results {
		if withError && i < last && (f.source(e) == "0" || f.source(e) == "false") {
			f.done[e] = true // what stands beside an error says nothing
		}
		if id, ok := e.(*ast.Ident); ok && id.Name == "nil" {
			continue
		}
		if types.Identical(want[i], types.Universe.Lookup("error").Type()) {
			f.add(e, "error kept back", noError)
		}
		if f.isBool(e) && f.plain(e) {
			f.add(e, "result negated", negate)
		}
	}
}

func (f *finder) expression(e ast.Expr) {
	if f.done[e] {
		return
	}
	if f.constant(e) {
		f.constants(e)
		return
	}
	switch e := e.(type) {
	case *ast.UnaryExpr:
		if e.Op == token.NOT && f.isBool(e) {
			f.add(e, "! removed", negate)
		}
	case *ast.BinaryExpr:
		x, y := f.source(e.X), f.source(e.Y)
		switch e.Op {
		case token.EQL, token.NEQ:
			// The check that has been removed says more than the one turned round.
			if f.isBool(e) && !f.guard[e] {
				op := "== to !="
				if e.Op == token.NEQ {
					op = "!= to =="
				}
				f.add(e, op, negate)
			}
			f.operands(e)
		case token.LSS, token.LEQ, token.GTR, token.GEQ:
			other := otherOperator[e.Op]
			f.add(e, e.Op.String()+" to "+other.String(), insteadBool(x+" "+other.String()+" "+y))
			if !f.guard[e] {
				f.add(e, "comparison negated", negate)
			}
			f.operands(e)
		case token.LAND, token.LOR:
			other := otherOperator[e.Op]
			f.add(e, e.Op.String()+" to "+other.String(), insteadBool("("+x+") "+other.String()+" ("+y+")"))
			for _, side := range []ast.Expr{e.X, e.Y} {
				if inner, ok := ast.Unparen(side).(*ast.BinaryExpr); ok && inner.Op == e.Op {
					continue // its own operands are taken out one by one
				}
				if e.Op == token.LAND {
					f.add(side, "operand of && dropped", satisfy)
				} else {
					f.add(side, "operand of || dropped", falsify)
				}
			}
		case token.ADD, token.SUB, token.MUL, token.QUO, token.REM, token.AND, token.OR, token.AND_NOT, token.XOR:
			if f.integer(e) && f.pure(e) {
				other := otherOperator[e.Op]
				f.add(e, e.Op.String()+" to "+other.String(), instead("("+x+") "+other.String()+" ("+y+")"))
			}
		}
	}
}

// operands keeps the integer constants of a comparison: one more is what the
// other comparison says.
func (f *finder) operands(e *ast.BinaryExpr) {
	for _, side := range []ast.Expr{e.X, e.Y} {
		if f.constant(side) && !f.enumerated(side) {
			f.done[side] = true
			f.skip[side] = true
		}
	}
}

// constants changes the largest constant expression.
func (f *finder) constants(e ast.Expr) {
	ast.Inspect(e, func(n ast.Node) bool {
		if x, ok := n.(ast.Expr); ok && x != e {
			f.done[x] = true
		}
		return true
	})
	if id, ok := e.(*ast.Ident); ok && (id.Name == "true" || id.Name == "false") {
		if id.Name == "true" {
			f.add(e, "true to false", func(id int, _ string) string { return fmt.Sprintf("(!mutantOn(%d))", id) })
		} else {
			f.add(e, "false to true", func(id int, _ string) string { return fmt.Sprintf("mutantOn(%d)", id) })
		}
		return
	}
	if f.enumerated(e) {
		if other := f.sibling(e); other != "" {
			f.add(e, "constant swapped for "+other, instead(other))
		}
		return
	}
	if f.integer(e) {
		t := types.TypeString(types.Default(f.pkg.info.TypeOf(e)), func(p *types.Package) string {
			if p == f.pkg.types {
				return ""
			}
			return p.Name()
		})
		s := t + "(" + f.source(e) + ")"
		f.add(e, "one more", func(id int, _ string) string { return fmt.Sprintf("mutantAlt(%d, %s, %s+1)", id, s, s) })
	}
}

func (f *finder) constObject(e ast.Expr) (*types.Const, string) {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		c, _ := f.pkg.info.Uses[e].(*types.Const)
		return c, ""
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			c, _ := f.pkg.info.Uses[e.Sel].(*types.Const)
			return c, x.Name + "."
		}
	}
	return nil, ""
}

// enumerated tells whether e names a constant that has siblings of its type,
// in a package of this module.
func (f *finder) enumerated(e ast.Expr) bool { return f.sibling(e) != "" }

func (f *finder) sibling(e ast.Expr) string {
	c, qualifier := f.constObject(e)
	if c == nil || c.Pkg() == nil || !strings.HasPrefix(c.Pkg().Path(), f.pkg.module) {
		return ""
	}
	if _, ok := c.Type().(*types.Named); !ok {
		return ""
	}
	var all []*types.Const
	for _, name := range c.Pkg().Scope().Names() {
		o, ok := c.Pkg().Scope().Lookup(name).(*types.Const)
		if ok && types.Identical(o.Type(), c.Type()) && (qualifier == "" || o.Exported()) && name != "_" {
			all = append(all, o)
		}
	}
	if len(all) < 2 {
		return ""
	}
	slices.SortStableFunc(all, func(a, b *types.Const) int { return int(a.Pos() - b.Pos()) })
	i := slices.IndexFunc(all, func(o *types.Const) bool { return o.Name() == c.Name() })
	if i < 0 {
		return ""
	}
	return qualifier + all[(i+1)%len(all)].Name()
}
