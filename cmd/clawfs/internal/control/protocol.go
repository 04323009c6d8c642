package control

import (
	"fmt"
	"net/http"
	"os"
	"strings"
)

// protocol is the version of the requests and answers; whoever changes one of
// them so that an older program would misread it counts it up. It is a variable
// for the linker: tests build a program of another version with it.
var protocol = "1"

const protocolHeader = "Clawfs-Protocol"

// Protocol is the version of the requests and answers of this program.
func Protocol() string { return protocol }

// acrossVersions are the requests of mount processes, which outlive the daemon
// that started them and speak to the next one, older or newer. What they carry is
// only added to, what is not known in it is left alone, and what counts is signed.
func acrossVersions(path string) bool {
	return path == "/v1/view" || strings.HasPrefix(path, "/v1/mounts/") && strings.HasSuffix(path, "/report")
}

// checkProtocol refuses a client of another version. One that does not say is a
// person with curl.
func checkProtocol(r *http.Request) error {
	got := r.Header.Get(protocolHeader)
	if got == "" || got == protocol || acrossVersions(r.URL.Path) {
		return nil
	}
	return &Error{Status: http.StatusUpgradeRequired, Message: skew(protocol, got, os.Getpid())}
}

// checkAnswer refuses the answer of a daemon of another version.
func checkAnswer(h http.Header, path string) error {
	got := h.Get(protocolHeader)
	if got == protocol || acrossVersions(path) {
		return nil
	}
	if got == "" {
		got = "none"
	}
	return &Error{Status: http.StatusUpgradeRequired, Message: skew(got, protocol, 0)}
}

func skew(daemon, client string, pid int) string {
	who, end := "the daemon", "kill the pid that run/daemon.lock names"
	if pid != 0 {
		who, end = fmt.Sprintf("the daemon (pid %d)", pid), fmt.Sprintf("kill %d", pid)
	}
	return fmt.Sprintf("%s is of another version than this program: it speaks control protocol %.16q, and this program %.16q; next: end it (%s; mounts go on), then clawfs daemon", who, daemon, client, end)
}
