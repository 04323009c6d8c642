//go:build !amd64

package hashpipe

const twoLanes = false // only amd64 has the assembly

func compress2(s *[2]state, a, b []byte) { panic("no two lanes on this processor") }
