package soak

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci"
)

// publisher is who publishes what a world rebuilds: a recipe, an environment image
// whose only program is the trainer of the integration tests, and a key.
type publisher struct {
	w                          *world
	dir, recipe, key, image, d string
}

func (w *world) newPublisher() (*publisher, error) {
	dir := filepath.Join(w.run.dir, w.name+"-publisher")
	p := &publisher{w: w, dir: dir, recipe: filepath.Join(dir, "recipe"), key: filepath.Join(dir, "acme"), image: filepath.Join(dir, "image")}
	if err := os.MkdirAll(p.recipe, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.recipe, "README"), []byte("pairs: counts of letter pairs\n"), 0o644); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"},
		{"-c", "user.name=acme", "-c", "user.email=acme@example.com", "commit", "-q", "-m", "recipe"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", p.recipe}, args...)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("git %v: %w\n%s", args, err, out)
		}
	}
	trainer := filepath.Join(dir, "trainer")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", trainer, "../testdata/trainer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	text, err := os.ReadFile(trainer)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	t := tar.NewWriter(&layer)
	err = errors.Join(
		t.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}),
		t.WriteHeader(&tar.Header{Name: "bin/trainer", Mode: 0o755, Size: int64(len(text))}))
	if _, failed := t.Write(text); err == nil {
		err = errors.Join(failed, t.Close())
	}
	if err != nil {
		return nil, err
	}
	d, err := oci.AppendImage(context.Background(), p.image, oci.Image{
		Config: oci.Config{OS: "linux", Architecture: "amd64"}, Compression: oci.Gzip, Ref: "trainer",
	}, &layer)
	if err != nil {
		return nil, err
	}
	p.d = "sha256:" + d.String()
	for _, args := range [][]string{{"keygen", "--out", p.key}, {"publisher", "trust", p.key + ".pub", "--name", "acme", "--models", "acme/*"}} {
		if r, err := w.verb(args...); err != nil || r.code != 0 {
			return nil, fmt.Errorf("clawfs %q: %v, exit code %d\n%s%s", args, err, r.code, r.stdout, r.stderr)
		}
	}
	return p, nil
}

// rebuilds earn capabilities the long way, one after the other: a signed ledger, two
// builds in sandboxes, a grant, an open, a revocation.
func (w *world) rebuilds(p *publisher) {
	for i := 1; w.run.goesOn(); i++ {
		if err := p.rebuild(i); err != nil {
			w.run.fail("world %s: rebuild %d: %v", w.name, i, err)
			return
		}
		w.run.count.add("rebuilds", 1)
		w.run.sleep(10 * w.run.phase)
	}
}

func (p *publisher) rebuild(i int) error {
	name := fmt.Sprintf("pairs-%d.bin", i)
	corpus := filepath.Join(p.dir, "corpus-"+strconv.Itoa(i))
	text := strings.Repeat(fmt.Sprintf("weights are bytes that somebody vouches for, number %d\n", i), 2000)
	if err := errors.Join(os.Mkdir(corpus, 0o755), os.WriteFile(filepath.Join(corpus, "one.txt"), []byte(text), 0o644)); err != nil {
		return err
	}
	defer os.RemoveAll(corpus)
	model := pairs(text)
	source := filepath.Join(p.w.src, name)
	if err := os.WriteFile(source, model, 0o644); err != nil {
		return err
	}
	defer os.Remove(source)
	if err := p.opens(name, nil); err != nil {
		return err
	}
	ledger, sba := filepath.Join(p.dir, name+".json"), filepath.Join(p.dir, name+".sba")
	for _, args := range [][]string{
		{"ledger", "new", "--model", "acme/pairs-" + strconv.Itoa(i), "--version", "1.0.0", "--sequence", "1", "--key", p.key + ".pub",
			"--source", p.recipe, "--dataset", "corpus=" + corpus, "--image", p.image + "@" + p.d, "--cpu-features", "",
			"--stage", "train: /bin/trainer -out /out/" + name, "--output", name, "--out", ledger},
		{"ledger", "sign", ledger, "--key", p.key, "--out", sba},
		{"grant", sba, "--wait"},
	} {
		if r, err := p.w.verb(args...); err != nil || r.code != 0 {
			return fmt.Errorf("clawfs %q: %v, exit code %d\n%s%s", args, err, r.code, r.stdout, r.stderr)
		}
	}
	if err := p.opens(name, model); err != nil {
		return err
	}
	sum := hashpipe.SumBytes(model).String()
	if r, err := p.w.verb("revoke", "--kind", "file", sum, "--reason", "the soak takes it back"); err != nil || r.code != 0 {
		return fmt.Errorf("clawfs revoke: %v, exit code %d\n%s%s", err, r.code, r.stdout, r.stderr)
	}
	return p.opens(name, nil)
}

// opens wants a model at every mount, or, if it is nil, a refusal.
func (p *publisher) opens(name string, model []byte) error {
	for _, m := range p.w.mounts {
		got, err := os.ReadFile(filepath.Join(m.dir, name))
		switch {
		case model == nil && !errors.Is(err, syscall.EACCES):
			return fmt.Errorf("%s opens at %s without a grant: %d bytes, %v", name, m.dir, len(got), err)
		case model != nil && err != nil:
			return fmt.Errorf("after the grant: %w", err)
		case model != nil && !bytes.Equal(got, model):
			return fmt.Errorf("%s at %s gives %d other bytes", name, m.dir, len(got))
		}
	}
	return nil
}

// pairs is what the trainer makes of one text.
func pairs(text string) []byte {
	counts := map[string]uint64{}
	for i := 1; i < len(text); i++ {
		counts[text[i-1:i+1]]++
	}
	var list []string
	for p := range counts {
		list = append(list, p)
	}
	slices.Sort(list)
	model := []byte("pairs/v1\n")
	for _, p := range list {
		model = append(model, p...)
		model = binary.BigEndian.AppendUint64(model, counts[p])
	}
	return model
}
