package main

import (
	"fmt"
	"strings"

	"github.com/openclaw/clawfs/verifier"
)

// parseStage reads "NAME: argv…" into a stage.
func parseStage(text string) (verifier.Stage, error) {
	name, command, ok := strings.Cut(text, ":")
	name = strings.TrimSpace(name)
	if !ok || name == "" {
		return verifier.Stage{}, exitf(codeUsage, "--stage %q: want 'NAME: program argument…'", text)
	}
	argv, err := splitWords(command)
	if err != nil {
		return verifier.Stage{}, exitf(codeUsage, "--stage %q: %w", text, err)
	}
	if len(argv) == 0 {
		return verifier.Stage{}, exitf(codeUsage, "--stage %q: no program after the name", text)
	}
	return verifier.Stage{Name: name, Argv: argv}, nil
}

// splitWords splits a command line at white space. Single and double quotes
// group and a backslash outside single quotes takes the next byte as it is;
// nothing is expanded. What a shell would treat otherwise is refused unless it
// is quoted, because no shell runs in the sandbox and "a | b" would silently
// mean something else than its author read.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord := false
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'':
			i++
			if i == len(s) {
				return nil, fmt.Errorf("ends in a backslash")
			}
			word.WriteByte(s[i])
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote = c
			inWord = true
		case strings.IndexByte(" \t\n\r", c) >= 0:
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		case strings.IndexByte("|&;<>()$`*?", c) >= 0:
			return nil, fmt.Errorf("%q has no meaning here, because no shell runs; quote it to pass it on, or run a script of the source", string(c))
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
