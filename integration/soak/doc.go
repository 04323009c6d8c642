// Package soak runs the built program for a chosen time while everything around
// it goes wrong, and compares what it saw with what was promised:
//
//	make soak SOAK=1h
//
// Two state directories are under test. The rough one has its daemon and its
// mount processes killed, stopped and upgraded under the readers; the calm one is
// left alone, so that its processes are old enough to show a leak. Both have a
// mount of each tier, readers in processes of their own who compare every byte,
// grants and revocations, and a source that others write to all the time.
//
// What a run says, and what makes it fail:
//
//   - a byte that is not of the approved content,
//   - an open, grant or revocation that no order explains: see model,
//   - an error that nothing excuses: see excused,
//   - a report of the race detector, a panic, a client that hangs,
//   - memory, descriptors or goroutines that grow: see flat.
//
// The package has tests only.
package soak
