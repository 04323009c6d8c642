package compare

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// storage is a member data/<key> of a file of torch.save, as its data.pkl
// tells of it.
type storage struct{ dtype, tensor string }

// torchTypes are the storages of floats, by their names in Python.
var torchTypes = map[string]string{
	"HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32", "DoubleStorage": "F64",
}

// torchStorages reads the names and types of the storages from the data.pkl of
// a torch zip. It runs no pickle machine: it follows the opcodes of protocol 2
// one after the other, remembers strings and global names with their memo
// numbers, and looks for ('storage', torch.FloatStorage, key, ...) before each
// BINPERSID and for the string before the global torch._utils._rebuild_*.
// It knows nothing about objects, so nothing in a hostile pickle can happen. At
// an opcode that torch.save does not write it stops with what it has.
func torchStorages(pickle []byte) map[string]storage {
	found := map[string]storage{}
	s := scanner{rest: pickle, memo: map[uint32]string{}}
	for s.step() {
		if !s.persistent {
			continue
		}
		// What was pushed since the tuple's MARK: storage, type, key, place, size.
		if t := s.since; len(t) >= 3 && t[0] == "storage" && len(found) < maxParts {
			if _, twice := found[t[2]]; !twice { // of tensors that share, the first
				found[t[2]] = storage{torchTypes[strings.TrimPrefix(t[1], "torch ")], s.name}
			}
		}
	}
	return found
}

// scanner goes through the opcodes of a pickle. Strings and globals ("module
// name") are texts; every other object is the empty text.
type scanner struct {
	rest       []byte
	memo       map[uint32]string
	since      []string // texts pushed since the last MARK, at most maxSince
	last       string   // the text pushed last
	name       string   // the string that was pushed before the last _rebuild_*
	persistent bool     // the step was a BINPERSID
}

// maxSince is more than any tuple has that is looked for.
const maxSince = 8

func (s *scanner) push(text string) bool {
	const rebuild = "torch._utils _rebuild_" // _tensor_v2, and _parameter around it
	if strings.HasPrefix(text, rebuild) && !strings.HasPrefix(s.last, rebuild) {
		s.name = s.last
	}
	s.last = text
	if len(s.since) < maxSince {
		s.since = append(s.since, text)
	}
	return true
}

// take cuts n bytes off; ok is false at the end.
func (s *scanner) take(n int) (b []byte, ok bool) {
	if n < 0 || n > len(s.rest) {
		return nil, false
	}
	b, s.rest = s.rest[:n], s.rest[n:]
	return b, true
}

// line cuts off a line.
func (s *scanner) line() (string, bool) {
	for i, c := range s.rest {
		if c == '\n' {
			text := string(s.rest[:i])
			s.rest = s.rest[i+1:]
			return text, true
		}
		if i == maxShown*4 {
			break
		}
	}
	return "", false
}

// number cuts off a little-endian number of n bytes.
func (s *scanner) number(n int) (uint32, bool) {
	b, ok := s.take(n)
	if !ok {
		return 0, false
	}
	var le [4]byte
	copy(le[:], b)
	return binary.LittleEndian.Uint32(le[:]), true
}

// step follows one opcode; see Lib/pickletools.py of Python.
func (s *scanner) step() bool {
	op, ok := s.take(1)
	if !ok {
		return false
	}
	s.persistent = false
	switch op[0] {
	case 0x80: // PROTO
		_, ok = s.take(1)
		return ok
	case '(': // MARK
		s.since = s.since[:0]
		return true
	case 'Q': // BINPERSID
		s.persistent, s.last = true, ""
		return true
	case 'X', 'T', 'U', 0x8c: // BINUNICODE, BINSTRING, SHORT_BINSTRING, SHORT_BINUNICODE
		width := 4
		if op[0] == 'U' || op[0] == 0x8c {
			width = 1
		}
		n, ok := s.number(width)
		if !ok || int64(n) > int64(len(s.rest)) {
			return false
		}
		b, _ := s.take(int(n))
		return s.push(string(b[:min(len(b), maxShown*4)]))
	case 'c': // GLOBAL
		module, ok := s.line()
		if !ok {
			return false
		}
		name, ok := s.line()
		return ok && s.push(module+" "+name)
	case 'q', 'r': // BINPUT, LONG_BINPUT
		n, ok := s.number(map[byte]int{'q': 1, 'r': 4}[op[0]])
		if ok && len(s.memo) < 2*maxParts && s.last != "" {
			s.memo[n] = s.last
		}
		return ok
	case 'h', 'j': // BINGET, LONG_BINGET
		n, ok := s.number(map[byte]int{'h': 1, 'j': 4}[op[0]])
		return ok && s.push(s.memo[n])
	case 'K', 'M', 'J': // BININT1, BININT2, BININT
		n, ok := s.number(map[byte]int{'K': 1, 'M': 2, 'J': 4}[op[0]])
		return ok && s.push(strconv.Itoa(int(n)))
	case 0x8a: // LONG1
		n, ok := s.number(1)
		if !ok {
			return false
		}
		_, ok = s.take(int(n))
		return ok && s.push("")
	case 'G': // BINFLOAT
		_, ok = s.take(8)
		return ok && s.push("")
	case ')', ']', '}', 'N', 0x88, 0x89: // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT, NONE, NEWTRUE, NEWFALSE
		return s.push("")
	case 't', 0x85, 0x86, 0x87, 'R', 'b', 0x81: // TUPLE, TUPLE1 to 3, REDUCE, BUILD, NEWOBJ
		s.last = "" // what a BINPUT now remembers is no text
		return true
	case 's', 'u', 'a', 'e', '0', '1', '2': // SETITEM(S), APPEND(S), POP, POP_MARK, DUP
		return true
	}
	return false // STOP, and what torch.save does not write
}
