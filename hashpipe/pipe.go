package hashpipe

// depth is the number of unit buffers of one Measure: one being read and
// hashed as a stream, one being hashed as a tree, one waiting.
const depth = 3

// treePipe is for a processor without two lanes. It hashes units into a tree on
// a second goroutine, over the buffers that the first hashes as a stream. A
// content of one unit is hashed in place and starts no goroutine.
type treePipe struct {
	free chan *buffer // buffers that neither side reads any more
	made int          // buffers taken from the pool

	work  chan unitWork // nil until the goroutine runs
	done  chan struct{} // closed when the goroutine has ended
	units [][hashSize]byte
}

type unitWork struct {
	buf *buffer
	n   int
}

func startTree() *treePipe { return &treePipe{free: make(chan *buffer, depth)} }

// buffer returns a buffer for the next unit. The caller has finished with all
// buffers it got before.
func (t *treePipe) buffer() *buffer {
	if t.made < depth {
		select {
		case b := <-t.free:
			return b
		default:
			t.made++
			return buffers.Get().(*buffer)
		}
	}
	return <-t.free
}

// hash takes the next unit; the caller may still read buf until its next call
// of buffer. end says that the content ends with it, maybe with no byte.
func (t *treePipe) hash(buf *buffer, n int, end bool) {
	if t.work == nil && end {
		t.add(buf, n, n <= BlockSize)
		t.free <- buf
		return
	}
	if t.work == nil {
		t.work = make(chan unitWork, depth)
		t.done = make(chan struct{})
		go t.run()
	}
	t.work <- unitWork{buf, n}
}

func (t *treePipe) run() {
	defer close(t.done)
	for w := range t.work {
		t.add(w.buf, w.n, false)
		t.free <- w.buf
	}
}

func (t *treePipe) add(buf *buffer, n int, whole bool) {
	if n == 0 {
		return
	}
	u := unitHashers.Get().(*unitHasher)
	t.units = append(t.units, u.sum(buf[:n], whole))
	unitHashers.Put(u)
}

// stop waits for the goroutine and returns the hashes of all units. It may be
// called again.
func (t *treePipe) stop() [][hashSize]byte {
	if t.work != nil {
		close(t.work)
		<-t.done
		t.work = nil
	}
	for {
		select {
		case b := <-t.free:
			buffers.Put(b)
		default:
			return t.units
		}
	}
}
