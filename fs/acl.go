package fs

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Access control lists of the source are not shown through the mount; its mode
// decides. But beside a list the mode's group bits are the list's mask, and its
// other bits say nothing of who is named with less. So the mode shown of such a
// file gives nobody more than the list does, and some less.

// aclName and the layout of its value: version 2, four bytes, then for each
// entry tag 2, permission 2, id 4, little-endian (linux/posix_acl_xattr.h).
const (
	aclName     = "system.posix_acl_access"
	aclVersion  = 2
	aclGroupObj = 0x04
	aclUser     = 0x02
	aclGroup    = 0x08
	aclMask     = 0x10
)

// limitMode takes from a mode what the list of a file or directory does not
// give. get fetches an extended attribute of it. A list that cannot be read
// leaves the owner alone.
func limitMode(st *unix.Stat_t, get func(name string, value []byte) (int, error)) {
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR || st.Mode&0o077 == 0 {
		return
	}
	var value [4 + 8*64]byte
	n, err := get(aclName, value[:])
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
	case err != nil:
		st.Mode &^= 0o077 // also a list of more than 64 entries
	default:
		st.Mode = withList(st.Mode, value[:n])
	}
}

// withList returns the mode that gives the group and others no more than any
// entry of the list that could be meant for them.
func withList(mode uint32, list []byte) uint32 {
	if len(list) < 4 || binary.LittleEndian.Uint32(list) != aclVersion || (len(list)-4)%8 != 0 {
		return mode &^ 0o077
	}
	group, other := mode>>3&7, mode&7
	for list = list[4:]; len(list) > 0; list = list[8:] {
		perm := uint32(binary.LittleEndian.Uint16(list[2:])) & 7
		switch binary.LittleEndian.Uint16(list) {
		case aclGroupObj, aclMask:
			group &= perm
		case aclUser, aclGroup:
			group &= perm
			other &= perm
		}
	}
	return mode&^0o077 | group<<3 | other
}
