package capstore

import "github.com/openclaw/clawfs/hashpipe"

// Kinds of Record.
const (
	RecordCapability = "capability"
	RecordRevocation = "revocation"
)

// Record is one signed text on its way from a Store to a View elsewhere.
type Record struct {
	Kind     string `json:"kind"`
	Envelope []byte `json:"envelope"`
}

// RejectedRow is a row on disk that did not verify. It is reported and never
// granted, and the store does not delete it.
type RejectedRow struct {
	Key    string
	Reason string
}

// Store keeps signed records and jobs in Badger, and the verified View of them.
type Store struct{ view *View }

func Open(dir string, t Trust) (*Store, error)              { panic("unwritten") }
func (s *Store) Close() error                               { panic("unwritten") }
func (s *Store) View() *View                                { return s.view }
func (s *Store) Admit(envelope []byte) (Capability, error)  { panic("unwritten") }
func (s *Store) Revoke(envelope []byte) (Revocation, error) { panic("unwritten") }
func (s *Store) Rejected() []RejectedRow                    { panic("unwritten") }
func (s *Store) Subscribe(buffer int) (snap []Record, up <-chan Record, cancel func()) {
	panic("unwritten")
}
func (s *Store) AddJob(j Job) (Job, error)                              { panic("unwritten") }
func (s *Store) PutJob(j Job) error                                     { panic("unwritten") }
func (s *Store) Job(id string) (Job, error)                             { panic("unwritten") }
func (s *Store) Jobs() ([]Job, error)                                   { panic("unwritten") }
func (s *Store) FinishJob(j Job, capability []byte) (Capability, error) { panic("unwritten") }
func isJobID(id string) bool                                            { panic("unwritten") }

// Lookup is View().Lookup.
func (s *Store) Lookup(d hashpipe.Digest) []Grant { return s.view.Lookup(d) }

// All is View().All.
func (s *Store) All() []Grant { return s.view.All() }
