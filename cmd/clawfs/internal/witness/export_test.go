package witness

import "time"

// SetClock makes w read another clock.
func (w *Witness) SetClock(now func() time.Time) { w.now = now }
