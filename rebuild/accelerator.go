package rebuild

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Accelerators describes the accelerators of this machine, one text each: PCI
// class, vendor and device number and the kernel driver, and the driver's
// version where it tells. It is for the message that compares a ledger's
// platform with this machine: a build gets no device, so every ledger that asks
// for one is NOT_COMPARABLE.
func Accelerators() []string { return accelerators("/sys/bus/pci/devices", "/sys/module") }

// PCI class codes (PCI Code and ID Assignment 1.16) of display controllers
// without a screen and of processing accelerators.
var acceleratorClasses = map[string]string{"0x0302": "3D controller", "0x1200": "processing accelerator"}

func accelerators(devices, modules string) []string {
	entries, err := os.ReadDir(devices)
	if err != nil {
		return nil // a machine without PCI
	}
	var found []string
	for _, e := range entries {
		dir := filepath.Join(devices, e.Name())
		class := readLine(filepath.Join(dir, "class"))
		kind, ok := acceleratorClasses[class[:min(len(class), 6)]]
		if !ok {
			continue
		}
		text := kind + " " + strings.TrimPrefix(readLine(filepath.Join(dir, "vendor")), "0x") + ":" + strings.TrimPrefix(readLine(filepath.Join(dir, "device")), "0x")
		if driver, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
			name := filepath.Base(driver)
			text += ", driver " + name
			if version := readLine(filepath.Join(modules, name, "version")); version != "" {
				text += " " + version
			}
		}
		found = append(found, text)
	}
	slices.Sort(found)
	return found
}

// readLine returns the first line of a small file, "" if there is none.
func readLine(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}
