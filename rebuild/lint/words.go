package lint

import (
	"path"
	"slices"
	"strings"
)

// command is one program that a stage starts, as far as its command line
// shows.
type command struct {
	path string   // as it stands there
	name string   // base name of it, lower case: "python3"
	args []string // without quotes
	env  []string // NAME=value before it
}

// has reports whether an argument is one of the words, or such a word with
// "=value".
func (c command) has(words ...string) bool {
	return slices.ContainsFunc(c.args, func(arg string) bool {
		option, _, _ := strings.Cut(arg, "=")
		return slices.Contains(words, arg) || strings.HasPrefix(arg, "-") && slices.Contains(words, option)
	})
}

// short reports whether a cluster of one-letter options holds one of the
// letters: "-czf" has 'c'.
func (c command) short(letters string) bool {
	return slices.ContainsFunc(c.args, func(arg string) bool {
		return len(arg) > 1 && arg[0] == '-' && arg[1] != '-' && strings.ContainsAny(arg[1:], letters)
	})
}

// verb is the first argument that is no option.
func (c command) verb() string {
	for _, arg := range c.args {
		if !strings.HasPrefix(arg, "-") {
			return arg
		}
	}
	return ""
}

// shells read a script after -c.
var shells = []string{"sh", "bash", "dash", "ash", "zsh", "ksh"}

// wrappers start the program that their arguments name, after options and
// NAME=value.
var wrappers = []string{"env", "nice", "ionice", "exec", "time", "command", "sudo", "busybox", "stdbuf", "nohup", "setarch", "timeout", "xargs"}

// commands finds the programs of a command line: the one that it names, and
// those of a script behind sh -c. script is the text of the script, also that
// of python -c, else empty.
func commands(argv []string) (all []command, script string) {
	c := plain(argv)
	i := slices.IndexFunc(c.args, func(arg string) bool {
		return len(arg) > 1 && arg[0] == '-' && arg[1] != '-' && strings.HasSuffix(arg, "c")
	})
	if i < 0 || i+1 >= len(c.args) {
		return []command{c}, ""
	}
	switch script = c.args[i+1]; {
	case slices.Contains(shells, c.name):
		for _, words := range split(script) {
			inner := plain(words)
			inner.env = append(inner.env, c.env...)
			if inner.name != "" {
				all = append(all, inner)
			}
		}
		return all, script
	case isPython(c.name):
		return []command{c}, script
	}
	return []command{c}, ""
}

// plain takes wrappers and assignments off a simple command.
func plain(words []string) command {
	var c command
	for len(words) > 0 {
		w := words[0]
		switch {
		case isAssignment(w):
			c.env = append(c.env, w)
		case slices.Contains(wrappers, path.Base(w)):
			words = words[1:]
			for len(words) > 1 && (strings.HasPrefix(words[0], "-") || isNumber(words[0])) {
				words = words[1:]
			}
			continue
		default:
			c.path, c.name, c.args = w, strings.ToLower(path.Base(w)), words[1:]
			return c
		}
		words = words[1:]
	}
	return c
}

func isAssignment(w string) bool {
	name, _, ok := strings.Cut(w, "=")
	return ok && name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

func isNumber(w string) bool { return strings.Trim(w, "0123456789.smh") == "" }

// frame is a command that is being read. What $(...), `...` and (...) hold is
// read as commands of its own, and the outer one goes on after it.
type frame struct {
	words  []string
	word   []byte
	inWord bool
	quote  byte // ' or " or 0
	tick   bool // it ends at a backquote
}

// split cuts a shell script into its simple commands and those into words. It
// knows quotes, comments, substitutions and the signs between commands, not the
// grammar: keywords are taken off, and a here-document is read as commands.
func split(script string) [][]string {
	var all [][]string
	var outer []frame
	var f frame
	endWord := func() {
		if f.inWord {
			f.words = append(f.words, string(f.word))
		}
		f.word, f.inWord = f.word[:0], false
	}
	endCommand := func() {
		endWord()
		for len(f.words) > 0 && slices.Contains(keywords, f.words[0]) {
			f.words = f.words[1:]
		}
		if len(f.words) > 0 {
			all = append(all, f.words)
		}
		f.words = nil
	}
	enter := func(tick bool) {
		outer = append(outer, f)
		f = frame{tick: tick}
	}
	leave := func() {
		endCommand()
		if n := len(outer); n > 0 {
			f, outer = outer[n-1], outer[:n-1]
		}
	}
	for i := 0; i < len(script); i++ {
		ch := script[i]
		next := byte(0)
		if i+1 < len(script) {
			next = script[i+1]
		}
		switch {
		case f.quote == '\'':
			if ch == '\'' {
				f.quote = 0
				continue
			}
		case ch == '\\' && next != 0:
			i++
			if next == '\n' {
				continue
			}
			ch = next
		case ch == '$' && next == '(':
			i++
			f.inWord = true
			enter(false)
			continue
		case ch == '`':
			if f.tick {
				leave()
			} else {
				f.inWord = true
				enter(true)
			}
			continue
		case f.quote == '"':
			if ch == '"' {
				f.quote = 0
				continue
			}
		case ch == '\'' || ch == '"':
			f.quote, f.inWord = ch, true
			continue
		case ch == '#' && !f.inWord:
			for i+1 < len(script) && script[i+1] != '\n' {
				i++
			}
			continue
		case ch == '(':
			endCommand()
			enter(false)
			continue
		case ch == ')':
			leave()
			continue
		case strings.IndexByte(";|&\n", ch) >= 0:
			endCommand()
			continue
		case ch == ' ' || ch == '\t' || ch == '<' || ch == '>':
			endWord()
			if ch == '<' || ch == '>' {
				f.words = append(f.words, string(ch))
			}
			continue
		}
		f.word = append(f.word, ch)
		f.inWord = true
	}
	for range len(outer) + 1 { // what never ended
		leave()
	}
	endCommand()
	return all
}

var keywords = []string{"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "!", "case", "esac"}
