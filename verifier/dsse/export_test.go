package dsse

// SignRaw signs bytes that are no PAE, as an attacker's or a wrong tool would.
func (k PrivateKey) SignRaw(b []byte) ([]byte, error) { return k.sign(b) }
