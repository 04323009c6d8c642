package signer_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/signer"
	"github.com/openclaw/clawfs/verifier/dsse"
)

const payload = `{"hello":"world"}`

// patience is for machines that do much else.
const patience = time.Minute

// short is a directory whose path leaves room for a socket's name.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "clawfs-signer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startAgent runs a real ssh-agent and returns its socket.
func startAgent(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(short(t), "agent")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatalf("ssh-agent: %v; install it: apt-get install openssh-client", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket
		} else if time.Now().After(deadline) {
			t.Fatalf("ssh-agent does not listen: %v", err)
		}
	}
}

// addKey makes a key with ssh-keygen and gives it to the agent.
func addKey(t *testing.T, socket string, options ...string) (public []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s\ninstall it: apt-get install openssh-client", name, err, out)
		}
	}
	run("ssh-keygen", append([]string{"-q", "-N", "", "-f", path}, options...)...)
	run("ssh-add", "-q", path)
	public, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// verifies has an envelope signed and reads it as a consumer does.
func verifies(t *testing.T, s dsse.Signer) {
	t.Helper()
	data, err := dsse.SignContext(t.Context(), dsse.PayloadType, []byte(payload), s)
	if err != nil {
		t.Errorf("%s: %v", s, err)
		return
	}
	e, err := dsse.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{s.Public()}, 1); err != nil || string(got) != payload {
		t.Errorf("%s: Verify = %q, %v", s, got, err)
	}
}

// A real agent signs with both algorithms; the key is found by each of its names.
func TestAgent(t *testing.T) {
	socket := startAgent(t)
	rsa := addKey(t, socket, "-t", "rsa", "-b", "2048")
	p384 := addKey(t, socket, "-t", "ecdsa", "-b", "384")
	for algorithm, options := range map[string][]string{dsse.Ed25519: {"-t", "ed25519"}, dsse.ECDSAP256: {"-t", "ecdsa", "-b", "256"}} {
		text := addKey(t, socket, options...)
		public, err := dsse.ParsePublicKey(text)
		if err != nil {
			t.Fatal(err)
		}
		_, fingerprint := public.OpenSSH()
		byFile, err := signer.AgentRef(text)
		if err != nil || byFile != fingerprint {
			t.Errorf("AgentRef = %q, %v, want %q", byFile, err, fingerprint)
		}
		if byPEM, err := signer.AgentRef(public.PEM()); err != nil || byPEM != fingerprint {
			t.Errorf("AgentRef of PEM = %q, %v, want %q", byPEM, err, fingerprint)
		}
		for _, ref := range []string{fingerprint, string(public.ID())} {
			a, err := signer.OpenAgent(t.Context(), socket, ref, patience)
			if err != nil {
				t.Errorf("%s: %v", ref, err)
				continue
			}
			if a.Public() != public || public.Algorithm() != algorithm {
				t.Errorf("%s: the agent's key is %s, want %s", ref, a.Public().ID(), public.ID())
			}
			for range 8 { // r and s with and without a leading zero
				verifies(t, a)
			}
		}
	}
	for name, text := range map[string][]byte{"rsa": rsa, "p-384": p384} {
		key, _, _, _, err := ssh.ParseAuthorizedKey(text)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := signer.OpenAgent(t.Context(), socket, ssh.FingerprintSHA256(key), patience); err == nil || !strings.Contains(err.Error(), "expected ssh-ed25519 or ecdsa-sha2-nistp256") {
			t.Errorf("%s: OpenAgent = %v, %v, want a refusal of the algorithm", name, a, err)
		}
	}
	absent := "SHA256:" + strings.Repeat("A", 43)
	if _, err := signer.OpenAgent(t.Context(), socket, absent, patience); err == nil || !strings.Contains(err.Error(), "none of its 4 keys is "+absent+"; next: ssh-add KEYFILE") {
		t.Errorf("a key that the agent does not have: %v", err)
	}
	if _, err := signer.OpenAgent(t.Context(), socket+".none", absent, patience); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no agent: %v", err)
	}
}

// skEd25519 is the public half of a key in a FIDO token.
const skEd25519 = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiAAAABHNzaDo= acme"

func TestAgentRef(t *testing.T) {
	for ref, want := range map[string]struct {
		named bool
		fails string
	}{
		strings.Repeat("0a", 32):                     {true, ""},
		strings.Repeat("0A", 32):                     {false, "expected lower-case hex"},
		strings.Repeat("0a", 31):                     {false, ""},
		"SHA256:" + strings.Repeat("A", 43):          {true, ""},
		"SHA256:" + strings.Repeat("A", 43) + "=":    {false, "expected SHA256: and 43 characters"},
		"SHA256:" + strings.Repeat("A", 42):          {false, "expected SHA256: and 43 characters"},
		"SHA256:":                                    {false, "expected SHA256: and 43 characters"},
		"MD5:00:11":                                  {false, ""},
		"acme.pub":                                   {false, ""},
		"./" + strings.Repeat("0a", 32):              {false, ""},
		strings.Repeat("0a", 32) + "\n":              {false, ""},
		"SHA256:" + strings.Repeat("A", 43) + "\x00": {false, "expected SHA256: and 43 characters"},
	} {
		named, err := signer.IsAgentRef(ref)
		if named != want.named || (err == nil) != (want.fails == "") || err != nil && !strings.Contains(err.Error(), want.fails) {
			t.Errorf("IsAgentRef(%q) = %v, %v, want %v and %q", ref, named, err, want.named, want.fails)
		}
		if named {
			continue
		}
		if a, err := signer.OpenAgent(t.Context(), "/nonexistent", ref, patience); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("OpenAgent(%q) = %v, %v, want it refused before the agent is asked", ref, a, err)
		}
	}
	if ref, err := signer.AgentRef([]byte(skEd25519)); err == nil || !strings.Contains(err.Error(), "is a FIDO key") {
		t.Errorf("AgentRef of a FIDO key = %q, %v, want a refusal that says so", ref, err)
	}
	if ref, err := signer.AgentRef([]byte("garbage")); err == nil {
		t.Errorf("AgentRef of garbage = %q", ref)
	}
}

// liar is an agent that holds keys and answers what it likes.
type liar struct {
	agent.Agent
	list func() ([]*agent.Key, error)
	sign func(ssh.PublicKey, []byte) (*ssh.Signature, error)
}

func (l liar) List() ([]*agent.Key, error) {
	if l.list != nil {
		return l.list()
	}
	return l.Agent.List()
}

func (l liar) Sign(k ssh.PublicKey, data []byte) (*ssh.Signature, error) { return l.sign(k, data) }

// serve lets handle answer every connection to the socket that it returns.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	socket := filepath.Join(short(t), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handle(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return socket
}

func TestAgentThatLies(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	held, err := ring.List()
	if err != nil {
		t.Fatal(err)
	}
	ref := ssh.FingerprintSHA256(held[0])
	other := agent.NewKeyring()
	if _, key, err := ed25519.GenerateKey(rand.Reader); err != nil || other.Add(agent.AddedKey{PrivateKey: key}) != nil {
		t.Fatal(err)
	}
	others, err := other.List()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		sign func(k ssh.PublicKey, data []byte) (*ssh.Signature, error)
		want string
	}{
		"honest": {ring.Sign, ""},
		"another message": {func(k ssh.PublicKey, data []byte) (*ssh.Signature, error) {
			return ring.Sign(k, append(data, '!'))
		}, "is not a signature of that key"},
		"another key": {func(_ ssh.PublicKey, data []byte) (*ssh.Signature, error) { return other.Sign(others[0], data) }, "is not a signature of that key"},
		"another format": {func(k ssh.PublicKey, data []byte) (*ssh.Signature, error) {
			s, err := ring.Sign(k, data)
			s.Format = ssh.KeyAlgoSKED25519
			return s, err
		}, "expected a signature of ssh-ed25519, got"},
		"an empty signature": {func(ssh.PublicKey, []byte) (*ssh.Signature, error) {
			return &ssh.Signature{Format: ssh.KeyAlgoED25519}, nil
		}, "is not a signature of that key"},
		"refuses": {func(ssh.PublicKey, []byte) (*ssh.Signature, error) { return nil, errors.New("no") }, "asking"},
	} {
		socket := serve(t, func(c net.Conn) { agent.ServeAgent(liar{Agent: ring, sign: tt.sign}, c) })
		a, err := signer.OpenAgent(t.Context(), socket, ref, patience)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, err = dsse.SignContext(t.Context(), dsse.PayloadType, []byte(payload), a)
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), ref)) {
			t.Errorf("%s: SignContext = %v, want an error with %q that names %s", name, err, tt.want, ref)
		}
	}

	// A FIDO key in the list is refused by name; what cannot be read is passed over.
	token, _, _, _, err := ssh.ParseAuthorizedKey([]byte(skEd25519))
	if err != nil {
		t.Fatal(err)
	}
	list := func() ([]*agent.Key, error) {
		return []*agent.Key{{Format: "x", Blob: []byte("\x00\x00\x00\x01x and junk")}, {Format: token.Type(), Blob: token.Marshal()}}, nil
	}
	socket := serve(t, func(c net.Conn) { agent.ServeAgent(liar{Agent: ring, list: list}, c) })
	if _, err := signer.OpenAgent(t.Context(), socket, ssh.FingerprintSHA256(token), patience); err == nil || !strings.Contains(err.Error(), "is a FIDO key") {
		t.Errorf("a FIDO key: %v", err)
	}

	// What never answers, answers too much, or is no agent.
	for name, handle := range map[string]func(net.Conn){
		"silent": func(c net.Conn) { io.Copy(io.Discard, c) },
		"endless": func(c net.Conn) {
			c.Write([]byte{0xff, 0xff, 0xff, 0xff})
			io.Copy(io.Discard, c)
		},
		"closed": func(net.Conn) {},
		"junk":   func(c net.Conn) { fmt.Fprint(c, strings.Repeat("HTTP/1.1 200 OK\r\n", 64)) },
	} {
		start := time.Now()
		if _, err := signer.OpenAgent(t.Context(), serve(t, handle), ref, 300*time.Millisecond); err == nil {
			t.Errorf("%s: no error", name)
		}
		if took := time.Since(start); took > patience {
			t.Errorf("%s: took %s", name, took)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("Ctrl-C")
	time.AfterFunc(100*time.Millisecond, func() { cancel(enough) })
	if _, err := signer.OpenAgent(ctx, serve(t, func(c net.Conn) { io.Copy(io.Discard, c) }), ref, patience); !errors.Is(err, enough) {
		t.Errorf("interrupted: %v, want the reason of the interruption", err)
	}
}

// The example of docs/operations.md signs with both algorithms.
func TestProgram(t *testing.T) {
	program, err := filepath.Abs("../../testdata/signer/clawfs-signer-openssl")
	if err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		key, err := dsse.GenerateKey(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		text, err := key.PEM()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "a key; $(false)")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := signer.OpenProgram(t.Context(), signer.Config{Program: program, Key: path, Note: func(line string) { t.Logf("stderr: %s", line) }})
		if err != nil {
			t.Errorf("%s: %v; it needs jq and openssl: apt-get install jq openssl", algorithm, err)
			continue
		}
		if p.Public() != key.Public() {
			t.Errorf("%s: the program names key %s, want %s", algorithm, p.Public().ID(), key.Public().ID())
		}
		verifies(t, p)
	}
}

// script writes a signer program of sh.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clawfs-signer-test")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProgramThatLies(t *testing.T) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	quoted := `"` + strings.ReplaceAll(string(key.Public().PEM()), "\n", `\\n`) + `"`
	public := `{"publicKey":` + quoted + `}`
	line, _ := key.Public().OpenSSH()
	const junk = `{"signature":"AAAA"}`
	// answers prints public to the first question and then sign, a command.
	answers := func(sign string) string {
		return "read -r request\ncase $request in *'\"op\":\"public\"'*) printf '" + public + "';; *) " + sign + ";; esac"
	}
	for _, tt := range []struct{ name, script, want string }{
		{"nothing", "exit 0", "it printed nothing"},
		{"a line break", "echo", "it printed nothing"},
		{"no JSON", "echo hello", "its answer to public"},
		{"null", "echo null", "publicKey"},
		{"a list", `echo '[]'`, "its answer to public"},
		{"an empty object", `echo '{}'`, "no publicKey in PEM"},
		{"null inside", `echo '{"publicKey":null}'`, `expected a string for "publicKey"`},
		{"a number", `echo '{"publicKey":1}'`, `expected a string for "publicKey"`},
		{"no key", `echo '{"publicKey":"hello"}'`, "no publicKey in PEM"},
		{"a line of OpenSSH", `echo '{"publicKey":"` + line + `"}'`, "no publicKey in PEM"},
		{"an RSA key", `printf '{"publicKey":"%s"}' "$(openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 2>/dev/null | openssl pkey -pubout | awk '{printf "%s\\n", $0}')"`, "expected Ed25519 or ECDSA P-256"},
		{"an unknown member", `printf '{"publicKey":` + quoted + `,"x":"y"}'`, "unknown object member"},
		{"another case", `printf '{"PublicKey":` + quoted + `}'`, "unknown object member"},
		{"a member twice", `printf '{"publicKey":"","publicKey":` + quoted + `}'`, "duplicate"},
		{"two answers", `printf '` + public + public + `'`, "its answer to public"},
		{"bad UTF-8", `printf '{"publicKey":"\377"}'`, "UTF-8"},
		{"an answer, and failure", `printf '` + public + `'; exit 1`, "public failed: exit status 1"},
		{"another version", "exit 2", "it does not know public of version 1"},
		{"a signal", "kill -9 $$", "public failed: signal: killed"},
		{"too much", "head -c 65537 /dev/zero", "longer than 65536 bytes"},
		{"endless", "exec cat /dev/zero", "longer than 65536 bytes"},
		{"sleep", "exec sleep 1000", "no answer to public within 1s"},
		{"an answer by a child that stays", `printf '` + public + `'; sleep 10 & exit 0`, "public"},

		{"sign: a wrong signature", answers("echo '" + junk + "'"), "is not a signature of that key"},
		{"sign: nothing", answers("exit 0"), "it printed nothing"},
		{"sign: an empty signature", answers(`echo '{"signature":""}'`), "no signature in base64 on one line"},
		{"sign: broken base64", answers(`printf '{"signature":"AAA\\n="}'`), "no signature in base64 on one line"},
		{"sign: url-safe base64", answers(`echo '{"signature":"-_-_"}'`), "is not base64"},
		{"sign: no padding", answers(`echo '{"signature":"AAA"}'`), "is not base64"},
		{"sign: the public key again", answers(`printf '` + public + `'`), "unknown object member"},
		{"sign: refuses", answers("echo no >&2; exit 3"), "sign failed: exit status 3"},
		{"sign: not known", answers("exit 2"), "it does not know sign of version 1"},
		{"sign: sleep", answers("exec sleep 1000"), "no answer to sign within 1s"},
	} {
		// Written before any of them runs: a program that is being written cannot be
		// run, and a fork at that moment keeps it open.
		path := script(t, tt.script)
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			limit := patience
			if strings.Contains(tt.want, "within 1s") {
				limit = time.Second
			}
			p, err := signer.OpenProgram(t.Context(), signer.Config{Program: path, Key: "alias/x", TimeLimit: limit})
			if inSign := strings.HasPrefix(tt.name, "sign: "); inSign && err != nil {
				t.Fatalf("public: %v", err)
			} else if inSign {
				_, err = dsse.SignContext(t.Context(), dsse.PayloadType, []byte(payload), p)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `clawfs-signer-test with key "alias/x"`) {
				t.Errorf("%v, want an error with %q that names the program and the key", err, tt.want)
			}
		})
	}
}

func TestProgramRequest(t *testing.T) {
	dir := t.TempDir()
	path := script(t, "cat >"+dir+"/request; pwd >"+dir+"/pwd; echo \"$#\" >"+dir+"/args; exit 1")
	ref := "a\"b\\c\n$(touch " + dir + "/pwned)"
	if _, err := signer.OpenProgram(t.Context(), signer.Config{Program: path, Key: ref}); err == nil {
		t.Fatal("no error")
	}
	request, err := os.ReadFile(dir + "/request")
	if want := `{"clawfsSigner":1,"op":"public","key":"a\"b\\c\n$(touch ` + dir + `/pwned)"}` + "\n"; err != nil || string(request) != want {
		t.Errorf("request = %q, %v, want %q", request, err, want)
	}
	if args, err := os.ReadFile(dir + "/args"); err != nil || string(args) != "0\n" {
		t.Errorf("the program got %q arguments, %v, want none", args, err)
	}
	if _, err := os.Lstat(dir + "/pwned"); err == nil {
		t.Error("a shell ran the name of the key")
	}
	for _, bad := range []signer.Config{
		{Program: "clawfs-signer-test", Key: "x"},
		{Program: "./clawfs-signer-test", Key: "x"},
		{Program: "", Key: "x"},
		{Program: path, Key: ""},
		{Program: path, Key: strings.Repeat("x", 5000)},
		{Program: path, Key: "\xff"},
		{Program: path + ".none", Key: "x"},
		{Program: dir, Key: "x"},
	} {
		if p, err := signer.OpenProgram(t.Context(), bad); err == nil {
			t.Errorf("OpenProgram(%+v) = %v", bad, p)
		}
	}
}

// Standard error is shown in lines of bounded length and number, and a noisy
// program may still answer.
func TestProgramNotes(t *testing.T) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	pem := strings.ReplaceAll(string(key.Public().PEM()), "\n", `\\n`)
	path := script(t, `echo touch the token >&2; echo >&2; printf 'no end' >&2
head -c 3000 /dev/zero | tr '\0' x >&2
yes | head -c 1000000 >&2
printf '{"publicKey":"`+pem+`"}'`)
	var notes []string
	p, err := signer.OpenProgram(t.Context(), signer.Config{Program: path, Key: "x", Note: func(line string) { notes = append(notes, line) }})
	if err != nil || p.Public() != key.Public() {
		t.Fatalf("OpenProgram = %v", err)
	}
	total := 0
	for _, n := range notes {
		total += len(n)
		if len(n) == 0 || len(n) > 1024 || strings.Contains(n, "\n") {
			t.Errorf("a line of %d bytes: %.40q", len(n), n)
		}
	}
	if len(notes) < 5 || !slices.Equal(notes[:1], []string{"touch the token"}) || !strings.HasPrefix(notes[1], "no end") || total > 64<<10 {
		t.Errorf("%d lines of %d bytes: %.80q", len(notes), total, notes)
	}
}

func TestProgramName(t *testing.T) {
	for scheme, want := range map[string]bool{
		"awskms": true, "pkcs11": true, "a": true, "my-hsm": true, "a" + strings.Repeat("b", 31): true,
		"": false, "1": false, "-x": false, "AWS": false, "a/b": false, "..": false, "a b": false, "a.b": false, "a\n": false,
		"a" + strings.Repeat("b", 32): false, "ä": false, "a_b": false,
	} {
		name, ok := signer.ProgramName(scheme)
		if ok != want || ok && name != "clawfs-signer-"+scheme {
			t.Errorf("ProgramName(%q) = %q, %v, want %v", scheme, name, ok, want)
		}
	}
}
