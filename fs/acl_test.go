package fs

import (
	"encoding/binary"
	"math"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// aclText makes the value of an access control list.
func aclText(entries ...[3]uint32) []byte {
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, uint16(e[0]))
		out = binary.LittleEndian.AppendUint16(out, uint16(e[1]))
		out = binary.LittleEndian.AppendUint32(out, e[2])
	}
	return out
}

const (
	aclUserObj = 0x01
	aclOther   = 0x20
	noID       = math.MaxUint32
)

func TestWithList(t *testing.T) {
	for _, tt := range []struct {
		name string
		mode uint32
		list []byte
		want uint32
	}{
		{"mask hides an empty group", 0o640, aclText([3]uint32{aclUserObj, 6, noID}, [3]uint32{aclUser, 4, 1000}, [3]uint32{aclGroupObj, 0, noID}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 0, noID}), 0o600},
		{"a user with less than others", 0o644, aclText([3]uint32{aclUserObj, 6, noID}, [3]uint32{aclUser, 0, nobody}, [3]uint32{aclGroupObj, 4, noID}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 4, noID}), 0o600},
		{"a group with less than others", 0o755, aclText([3]uint32{aclUserObj, 7, noID}, [3]uint32{aclGroupObj, 5, noID}, [3]uint32{aclGroup, 1, 100}, [3]uint32{aclMask, 5, noID}, [3]uint32{aclOther, 5, noID}), 0o711},
		{"a user with as much", 0o644, aclText([3]uint32{aclUserObj, 6, noID}, [3]uint32{aclUser, 4, 1000}, [3]uint32{aclGroupObj, 4, noID}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 4, noID}), 0o644},
		{"another version", 0o644, []byte{3, 0, 0, 0}, 0o600},
		{"cut short", 0o644, aclText([3]uint32{aclUserObj, 6, noID})[:9], 0o600},
		{"empty", 0o644, nil, 0o600},
	} {
		if got := withList(unix.S_IFREG|tt.mode, tt.list); got != unix.S_IFREG|tt.want {
			t.Errorf("%s: %o, want %o", tt.name, got&0o7777, tt.want)
		}
	}
}

// Whom the source's list shuts out does not get in through the mount.
func TestAccessControlList(t *testing.T) {
	m := mountEmpty(t)
	data := sample(46, 5000)
	m.grant("model.bin", data)
	for _, dir := range []string{"shut", "listed", "open"} {
		m.write(dir+"/model.bin", data)
	}
	list := aclText([3]uint32{aclUserObj, 6, noID}, [3]uint32{aclUser, 0, nobody}, [3]uint32{aclGroupObj, 4, noID}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 4, noID})
	for _, dir := range []string{"shut", "listed"} {
		if err := unix.Setxattr(filepath.Join(m.src, dir, "model.bin"), aclName, list, 0); err != nil {
			t.Fatalf("the temporary directory is on a file system without access control lists: %v", err)
		}
	}
	r := m.run("list", m.at("listed")) // READDIRPLUS answers what LOOKUP does elsewhere
	if !strings.Contains(r.Text, "model.bin") {
		t.Fatalf("listing: %v %q", r, r.Text)
	}
	for name, want := range map[string]syscall.Errno{"shut/model.bin": syscall.EACCES, "listed/model.bin": syscall.EACCES, "open/model.bin": 0} {
		if r := m.run("read-as-nobody", m.at(name)); r.Errno != want {
			t.Errorf("nobody reading %s: %v, want %v", name, r, want)
		}
		m.reads(name, data)
	}
}

// A list that is not there changes nothing; one that cannot be read leaves the
// owner alone.
func TestLimitMode(t *testing.T) {
	strict := aclText([3]uint32{aclUserObj, 6, noID}, [3]uint32{aclGroupObj, 0, noID}, [3]uint32{aclMask, 0, noID}, [3]uint32{aclOther, 0, noID})
	for _, tt := range []struct {
		name       string
		mode, want uint32
		list       []byte
		err        error
	}{
		{"no list", unix.S_IFREG | 0o644, unix.S_IFREG | 0o644, nil, unix.ENODATA},
		{"no lists here", unix.S_IFDIR | 0o755, unix.S_IFDIR | 0o755, nil, unix.EOPNOTSUPP},
		{"a list", unix.S_IFREG | 0o664, unix.S_IFREG | 0o604, strict, nil},
		{"a directory's", unix.S_IFDIR | 0o775, unix.S_IFDIR | 0o705, strict, nil},
		{"more entries than are read", unix.S_IFREG | 0o644, unix.S_IFREG | 0o600, nil, unix.ERANGE},
		{"a broken disk", unix.S_IFDIR | 0o755, unix.S_IFDIR | 0o700, nil, unix.EIO},
		{"not allowed to look", unix.S_IFREG | 0o640, unix.S_IFREG | 0o600, nil, unix.EPERM},
	} {
		st := unix.Stat_t{Mode: tt.mode}
		asked := ""
		limitMode(&st, func(name string, value []byte) (int, error) {
			asked = name
			return copy(value, tt.list), tt.err
		})
		if st.Mode != tt.want || asked != aclName {
			t.Errorf("%s: mode %o, want %o; asked for %q", tt.name, st.Mode, tt.want, asked)
		}
	}
	// Of what nobody else may use, and of links, whose mode says nothing, no list is asked.
	for _, mode := range []uint32{unix.S_IFREG | 0o600, unix.S_IFDIR | 0o700, unix.S_IFLNK | 0o777, unix.S_IFIFO | 0o666} {
		st := unix.Stat_t{Mode: mode}
		limitMode(&st, func(string, []byte) (int, error) {
			t.Errorf("mode %o: the list was asked for", mode)
			return 0, unix.EIO
		})
		if st.Mode != mode {
			t.Errorf("mode %o became %o", mode, st.Mode)
		}
	}
}
