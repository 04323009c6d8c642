package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/term"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// maxKeyFile bounds a public key file in bytes; an RSA-4096 line, which is
// refused for its algorithm, still fits.
const maxKeyFile = 64 << 10

// readPublicKey reads a public key file: PEM or one OpenSSH line.
func readPublicKey(path string) (dsse.PublicKey, error) {
	data, err := readBounded(path, maxKeyFile)
	if err != nil {
		return dsse.PublicKey{}, err
	}
	key, err := dsse.ParsePublicKey(data)
	if err != nil {
		return dsse.PublicKey{}, exitf(codeSignature, "public key %s: %w", path, err)
	}
	return key, nil
}

// readPrivateKey reads a private key file, which nobody but its owner may be
// able to read. The passphrase of an OpenSSH key is asked for on the terminal.
func (a *app) readPrivateKey(path string) (dsse.PrivateKey, error) {
	data, err := config.ReadSecret(path)
	if err != nil {
		if _, public := readPublicKey(path); public == nil {
			return dsse.PrivateKey{}, fmt.Errorf("%s is a public key, and only a private key signs; give the other file of the pair", path)
		}
		return dsse.PrivateKey{}, fmt.Errorf("private key: %w", err)
	}
	key, err := dsse.ParsePrivateKey(data, func() ([]byte, error) { return a.passphrase(path) })
	if err != nil {
		return dsse.PrivateKey{}, fmt.Errorf("private key %s: %w", path, err)
	}
	return key, nil
}

func (a *app) passphrase(path string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("is encrypted, and there is no terminal to ask for its passphrase")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "Passphrase of %s: ", printable(path))
	secret, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	return secret, err
}

// readBounded reads a file of at most limit bytes; "-" is not special.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no such file", shellWord(path))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		return nil, fmt.Errorf("%s: want a file, got a directory", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, exitf(codeRefused, "%s: want at most %d bytes, and it is longer than that", path, limit)
	}
	return data, nil
}
