package lock

import (
	"strings"
	"testing"
)

// What packaging 21.3 answers for CPython on linux/amd64: "yes" and "no" where it
// answers that for every micro version from 0 to 29, first of Python 3.11, then
// of every Python 3.
func TestMarker(t *testing.T) {
	known, err := newEnvironment("3.11")
	if err != nil {
		t.Fatal(err)
	}
	any3, err := newEnvironment("")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		marker      string
		known, any3 truth
	}{
		{`sys_platform == 'linux'`, yes, yes},
		{`sys_platform == 'win32'`, no, no},
		{`sys_platform != "darwin"`, yes, yes},
		{`os_name == 'nt'`, no, no},
		{`platform_system == 'Linux' and platform_machine == 'x86_64'`, yes, yes},
		{`platform_machine == 'aarch64' or platform_machine == 'x86_64'`, yes, yes},
		{`platform_python_implementation != 'PyPy'`, yes, yes},
		{`implementation_name == 'cpython'`, yes, yes},
		{`python_version >= '3.8'`, yes, unknown},
		{`python_version < '3.11'`, no, unknown},
		{`python_version == '3.11'`, yes, unknown},
		{`python_version == '3.1'`, no, unknown},
		{`python_version in '3.10 3.11'`, yes, unknown},
		{`python_version not in '3.10, 3.12'`, yes, unknown},
		{`'3.8' <= python_version`, yes, unknown},
		{`python_full_version >= '3.11'`, yes, unknown},
		{`python_full_version < '3.11.4'`, unknown, unknown},
		{`python_full_version == '3.11.*'`, yes, unknown},
		{`python_full_version != '3.11.*'`, no, unknown},
		{`python_full_version == '3.11.5'`, unknown, unknown},
		{`python_full_version != '3.12.1'`, yes, unknown},
		{`python_full_version ~= '3.11'`, yes, unknown},
		{`python_full_version ~= '3.11.3'`, unknown, unknown},
		{`python_version ~= '3.8'`, yes, unknown},
		{`python_full_version > '3.11'`, unknown, unknown},
		{`python_version > '3.9' and sys_platform == 'win32'`, no, no},
		{`python_version < '3' or (sys_platform == 'linux' and python_version >= '3.10')`, yes, unknown},
		{`'linux' in sys_platform`, yes, yes},
		{`sys_platform in 'linux darwin'`, yes, yes},
		{`sys_platform not in 'win32'`, yes, yes},
		{`os.name == 'posix'`, yes, yes},
		{`python_full_version < '4'`, yes, yes},
		{`python_version >= '3.11' and python_version < '4.0'`, yes, unknown},
		{`python_full_version >= '3.12' and sys_platform == 'darwin'`, no, no},
		{`python_full_version == '3.11'`, unknown, unknown},
		{`python_version > '3.11'`, no, unknown},
		{`python_full_version <= '3.11'`, unknown, unknown},
		// Beyond what is known, or what packaging 21.3 knows.
		{``, yes, yes},
		{`os_name == 'posix' or os_name == 'nt'`, yes, yes},
		{`platform_release >= '5'`, unknown, unknown},
		{`extra == 'gpu'`, unknown, unknown},
		{`'gpu' in extras`, unknown, unknown},
		{`'dev' in dependency_groups and sys_platform == 'win32'`, no, no},
		{`python_version >= '3.11.dev1'`, unknown, unknown},
		{`sys_platform >= 'a'`, unknown, unknown},
		{`python_version ~= '3'`, unknown, unknown},
		{`python_version == '3.*'`, yes, yes},
	} {
		for _, e := range []struct {
			env  environment
			want truth
		}{{known, tt.known}, {any3, tt.any3}} {
			if got, err := e.env.eval(tt.marker); err != nil || got != e.want {
				t.Errorf("eval(%s) with python %q = %d, %v, want %d", tt.marker, e.env.vars["python_version"], got, err, e.want)
			}
		}
	}
	for _, marker := range []string{
		"sys_platform", "sys_platform ==", "== 'x'", "sys_platform = 'x'", "sys_platform == linux", "'a' == 'b'", "colour == 'red'",
		"sys_platform == 'x", "(sys_platform == 'x'", "sys_platform == 'x')", "sys_platform == 'x' and", "sys_platform == 'x' xor os_name == 'y'",
		"not sys_platform == 'x'", "sys_platform not 'x'", "__import__('os').system('true')", "os_name == 'a' os_name == 'b'",
		strings.Repeat("(", 33) + "os_name == 'nt'" + strings.Repeat(")", 33),
		strings.Repeat("os_name == 'nt' or ", 1000) + "os_name == 'nt'",
	} {
		if got, err := known.eval(marker); err == nil {
			t.Errorf("eval(%.80s) = %d, want an error", marker, got)
		}
	}
}
