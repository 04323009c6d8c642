package mint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// maxKeyFile bounds a key file in bytes; a PKCS#8 PEM of either algorithm has
// less than 1 KiB.
const maxKeyFile = 16 << 10

// Key is a mint's signing key. The zero Key signs nothing.
type Key struct{ key dsse.PrivateKey }

// Generate makes a new Ed25519 mint key at path, readable by its owner alone,
// and returns its public half. An existing file is never overwritten.
func Generate(path string) (dsse.PublicKey, error) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		return dsse.PublicKey{}, fmt.Errorf("generating mint key: %w", err)
	}
	text, err := key.PEM()
	if err != nil {
		return dsse.PublicKey{}, fmt.Errorf("generating mint key: %w", err)
	}
	if err := writeNew(path, text); err != nil {
		return dsse.PublicKey{}, fmt.Errorf("writing mint key: %w", err)
	}
	return key.Public(), nil
}

// writeNew returns after the file and its name are on stable storage. Of a
// failure nothing is left behind.
func writeNew(path string, text []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	// The umask can only take bits away from 0600, never add them.
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Open reads the mint key at path. It refuses a symbolic link, anything but a
// regular file, a file of another user, and a file that group or others may use.
func Open(path string) (*Key, error) {
	text, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("opening mint key: %w", err)
	}
	key, err := dsse.ParsePrivateKey(text, func() ([]byte, error) {
		return nil, errors.New("the mint key is encrypted, and a worker has nobody to ask for the passphrase: use an unencrypted key with mode 0600")
	})
	if err != nil {
		return nil, fmt.Errorf("opening mint key %s: %w", path, err)
	}
	return &Key{key}, nil
}

// Public is the key that a policy pins for this mint.
func (k *Key) Public() dsse.PublicKey {
	if k == nil {
		return dsse.PublicKey{}
	}
	return k.key.Public()
}

func readPrivate(path string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link: name the file itself", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Judged on the descriptor that is read, not on the name.
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %s, not a regular file", path, info.Mode().Type())
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, and others may use it: chmod 600 %s", path, perm, path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s does not belong to user %d, who runs this", path, os.Geteuid())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes: not a key", path, maxKeyFile)
	}
	return text, nil
}
