// Package integration holds the laws of the repository as tests: which
// package may import which, which programs the compiler must refuse, and what
// the built binary does to a real mount.
package integration
