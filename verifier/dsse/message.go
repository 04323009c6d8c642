package dsse

import (
	"bytes"
	"errors"
)

// SignWithoutPAE signs a message that is no envelope: a format of another
// protocol, whose signed bytes begin in a way of their own and never with
// "DSSEv1 ", so that no signature of the one is one of the other.
func (k PrivateKey) SignWithoutPAE(message []byte) ([]byte, error) {
	if bytes.HasPrefix(message, []byte("DSSEv1 ")) {
		return nil, errors.New("signing a message: it begins as the signed bytes of an envelope do")
	}
	return k.sign(message)
}
