package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/term"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/signer"
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

// keyHelp is what the help of a flag for a signing key says.
const keyHelp = "private `key`: a file (PKCS#8 PEM or OpenSSH), ssh-agent:KEY, or SCHEME:KEY for clawfs-signer-SCHEME"

// openSigner returns the key that ref names:
//
//	file:PATH             the private key file PATH
//	an existing file      that private key file, whatever its name
//	ssh-agent:FILE        the key of the public key file FILE, which an ssh-agent
//	                      holds; a key id or an SHA256: fingerprint do as well
//	SCHEME:KEY            KEY of the program clawfs-signer-SCHEME on PATH
//
// Anything else is a private key file that does not exist.
func (a *app) openSigner(ctx context.Context, ref string) (dsse.Signer, error) {
	if path, ok := strings.CutPrefix(ref, "file:"); ok {
		return a.readPrivateKey(path)
	}
	if _, err := os.Lstat(ref); err == nil {
		return a.readPrivateKey(ref)
	}
	scheme, key, found := strings.Cut(ref, ":")
	program, ok := signer.ProgramName(scheme)
	switch {
	case !found || !ok:
		return a.readPrivateKey(ref)
	case key == "":
		return nil, exitf(codeUsage, "%s: want a key after the colon; next: name the key, or file:%s if it is a file", printable(ref), printable(ref))
	case scheme == "ssh-agent":
		return openAgent(ctx, key)
	}
	// LookPath refuses what a relative entry of PATH leads to.
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("%s: neither a file nor a key of a signer program: %w; next: install %s, or write file:PATH", printable(ref), err, program)
	}
	return signer.OpenProgram(ctx, signer.Config{Program: path, Key: key, Note: func(line string) {
		fmt.Fprintf(a.stderr, "%s: %s\n", program, printable(line))
	}})
}

// openAgent finds a key of the agent that SSH_AUTH_SOCK names.
func openAgent(ctx context.Context, ref string) (dsse.Signer, error) {
	named, err := signer.IsAgentRef(ref)
	if err != nil {
		return nil, exit(codeUsage, err)
	}
	if !named {
		text, err := readBounded(ref, maxKeyFile)
		if err != nil {
			return nil, fmt.Errorf("ssh-agent: want a public key file, a key id or an SHA256: fingerprint: %w", err)
		}
		path := ref
		if ref, err = signer.AgentRef(text); err != nil {
			return nil, exitf(codeSignature, "ssh-agent: %s: %w", shellWord(path), err)
		}
	}
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, errors.New("SSH_AUTH_SOCK is not set, so there is no ssh-agent to ask; next: eval \"$(ssh-agent)\", then ssh-add KEYFILE")
	}
	return signer.OpenAgent(ctx, socket, ref, 0)
}

// signed gives the error of a signature its exit code.
func signed(err error) error {
	if errors.Is(err, dsse.ErrWrongSignature) {
		return exit(codeSignature, err)
	}
	return err
}

// readPrivateKey reads a private key file, which nobody but its owner may be
// able to read. The passphrase of an OpenSSH key is asked for on the terminal.
func (a *app) readPrivateKey(path string) (dsse.PrivateKey, error) {
	data, err := config.ReadSecret(path)
	if err != nil {
		if _, public := readPublicKey(path); public == nil {
			return dsse.PrivateKey{}, fmt.Errorf("%s is a public key, and only a private key signs; give the other file of the pair, or ssh-agent:%s if an agent holds it", path, path)
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
