package rebuild

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// sshConfig is the name of ssh's configuration in a gitProgram's directory.
const sshConfig = "ssh_config"

// sshOptions are for every host. Key and host keys are links beside the file,
// so that no path has to be quoted.
const sshOptions = `BatchMode yes
StrictHostKeyChecking yes
UserKnownHostsFile known_hosts
GlobalKnownHostsFile /dev/null
UpdateHostKeys no
VerifyHostKeyDNS no
CheckHostIP no
IdentityFile key
IdentitiesOnly yes
IdentityAgent none
PreferredAuthentications publickey
ForwardAgent no
ForwardX11 no
ClearAllForwardings yes
Tunnel no
PermitLocalCommand no
ProxyCommand none
ControlMaster no
ControlPath none
CanonicalizeHostname no
ConnectTimeout 30
ServerAliveInterval 15
ServerAliveCountMax 4
LogLevel ERROR
`

// reach returns the part of git's configuration that is about a remote host and
// writes that of ssh.
func (g *gitProgram) reach(ctx context.Context, a Access, r remote) (string, error) {
	if r.host == "" {
		return "", nil
	}
	var addrs []netip.Addr
	if a.Resolve != nil {
		var err error
		if addrs, err = a.Resolve(ctx, r.host); err == nil && len(addrs) == 0 {
			err = errors.New("no address")
		}
		if err != nil {
			return "", fmt.Errorf("resolving %.200q: %w", r.host, err)
		}
	}
	if r.protocol == "ssh" {
		return "", g.reachSSH(a, r, addrs)
	}
	// A server that sends less than 1000 bytes in a minute is given up.
	config := "[credential]\n\thelper =\n[http]\n\tsslVerify = true\n\tlowSpeedLimit = 1000\n\tlowSpeedTime = 60\n"
	if a.CAFile != "" {
		if err := operatorFile("authorities", a.CAFile); err != nil {
			return "", err
		}
		config += "\tsslCAInfo = " + quoteConfig(a.CAFile) + "\n"
	}
	if addrs == nil {
		return config, nil
	}
	config += "\tfollowRedirects = false\n"
	if _, err := netip.ParseAddr(r.host); err == nil {
		return config, nil // nothing to resolve
	}
	port := r.port
	if port == "" {
		port = "443"
	}
	return config + "\tcurloptResolve = " + quoteConfig(r.host+":"+port+":"+joinAddrs(addrs)) + "\n", nil
}

// pins says whether this git connects to the addresses that its configuration
// names: one from before 2.37 passes over http.curloptResolve without a word.
func (g *gitProgram) pins(ctx context.Context) error {
	out, err := outputGit(g.command(ctx, "version"))
	if err != nil {
		return err
	}
	var major, minor int
	if _, err := fmt.Sscanf(out, "git version %d.%d", &major, &minor); err != nil || major < 2 || major == 2 && minor < 37 {
		return fmt.Errorf("the https place of a ledger needs git 2.37 or newer, this is %.60q; next: upgrade git, or fetch the commit and name it with --source PATH", strings.TrimSpace(out))
	}
	return nil
}

func joinAddrs(addrs []netip.Addr) string {
	var all []string
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		text := a.String()
		if a.Is6() {
			text = "[" + text + "]"
		}
		all = append(all, text)
	}
	return strings.Join(all, ",")
}

func (g *gitProgram) reachSSH(a Access, r remote, addrs []netip.Addr) error {
	if a.KeyFile == "" || a.KnownHosts == "" {
		return errors.New("ssh needs a key and a known_hosts file that the operator names; fetch the commit and name it with --source PATH")
	}
	if _, err := exec.LookPath("ssh"); err != nil {
		return errors.New("ssh is missing: apt-get install openssh-client")
	}
	for name, file := range map[string]string{"key": a.KeyFile, "known_hosts": a.KnownHosts} {
		if err := operatorFile(name, file); err != nil {
			return err
		}
		if err := os.Symlink(file, filepath.Join(g.dir, name)); err != nil {
			return err
		}
	}
	config := sshOptions
	if len(addrs) > 0 {
		alias := r.host
		if r.port != "" && r.port != "22" {
			alias = "[" + r.host + "]:" + r.port // as known_hosts files have it
		}
		if strings.ContainsAny(alias, " \t\"'%$#") {
			return fmt.Errorf("%.200q is no host name", r.host)
		}
		config += "HostKeyAlias " + alias + "\nHostName " + addrs[0].Unmap().String() + "\n"
	}
	return os.WriteFile(filepath.Join(g.dir, sshConfig), []byte(config), 0o600)
}

// operatorFile says in words what ssh and curl say in riddles.
func operatorFile(what, name string) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("%s file %q: expected an absolute path", what, name)
	}
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("%s file: %w", what, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s file %s is no regular file", what, name)
	}
	return nil
}

// quoteConfig quotes a value of git's configuration that has no control
// characters.
func quoteConfig(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
}
