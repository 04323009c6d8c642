package rebuild

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// escape makes hostile text fit for a terminal and a log: control characters
// other than newline and tab, and bytes that are no UTF-8, are written as \xNN,
// bidirectional and other format characters as \uNNNN.
func escape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\n' && r != '\t', r == 0x7f:
			fmt.Fprintf(&out, `\x%02x`, s[i])
		case r >= 0x80 && r < 0xa0, r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0xfeff:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteString(s[i : i+n])
		}
		i += n
	}
	return out.String()
}

// logWriter escapes what is written and stops at a number of bytes; it never
// fails for that, so that a talkative build does not break its own pipe.
type logWriter struct {
	mu   sync.Mutex // guards what follows
	w    io.Writer
	left int64
	rest []byte // an unfinished UTF-8 sequence
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	if l.left <= 0 {
		return n, nil
	}
	p = append(l.rest, p...)
	keep := len(p)
	for back := 1; back < utf8.UTFMax && back <= len(p); back++ {
		if utf8.RuneStart(p[len(p)-back]) {
			if !utf8.FullRune(p[len(p)-back:]) {
				keep = len(p) - back
			}
			break
		}
	}
	l.rest = append([]byte(nil), p[keep:]...)
	text := escape(string(p[:keep]))
	if int64(len(text)) > l.left {
		text = text[:l.left] + "\n[the log ends here: its limit is reached]\n"
		l.left = 0
	} else {
		l.left -= int64(len(text))
	}
	if _, err := io.WriteString(l.w, text); err != nil {
		return 0, err
	}
	return n, nil
}

func (l *logWriter) printf(format string, args ...any) {
	fmt.Fprintf(l, format+"\n", args...)
}
