package hashpipe

import "testing"

func TestTwoLanesRun(t *testing.T) {
	if has := hasSHA2(t); twoLanes != has {
		t.Errorf("SHA instructions in /proc/cpuinfo: %v, two lanes: %v", has, twoLanes)
	}
}

// The path of a processor without SHA instructions passes the same tests.
func TestOneLane(t *testing.T) {
	defer func(b bool) { twoLanes = b }(twoLanes)
	twoLanes = false
	t.Run("KnownAnswers", TestKnownAnswers)
	t.Run("MeasureReaders", TestMeasureReaders)
	t.Run("MeasureRefuses", TestMeasureRefuses)
	t.Run("WrongSize", TestWrongSize)
	t.Run("OnePass", TestOnePass)
	t.Run("Progress", TestProgress)
	t.Run("Cancel", TestCancel)
	t.Run("ReaderPanics", TestReaderPanics)
	t.Run("UnitOfZeros", TestUnitOfZeros)
	t.Run("Units", TestUnits)
	t.Run("UnitsAtOnce", TestUnitsAtOnce)
}
