package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

// Answer is what a node does with an order of Remote.Run: it runs the recipe
// here and leaves the answer beside the order, whole or not at all. That the
// build failed is an answer too; an error is none. Until it returns, the
// run's files are below scratch, a directory of this machine's, which Answer
// makes if need be and of which nobody else may write.
func (r *Runtime) Answer(ctx context.Context, path, scratch string) error {
	if err := r.Tidy(ctx, scratch); err != nil {
		return err
	}
	if err := r.answer(ctx, path, scratch); err != nil {
		return fmt.Errorf("answering %s: %w", path, err)
	}
	return nil
}

// Tidy removes what an Answer left on this machine that was killed.
func (r *Runtime) Tidy(ctx context.Context, scratch string) error {
	if _, err := r.Sweep(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(scratch, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("tidying up: %w", err)
	}
	dead, err := abandoned(ctx, scratch)
	for _, x := range dead {
		err = errors.Join(err, x.remove(ctx))
	}
	if err != nil {
		return fmt.Errorf("tidying up: %w", err)
	}
	return nil
}

func (r *Runtime) answer(ctx context.Context, path, scratch string) (err error) {
	o, err := readOrder(path)
	if err != nil {
		return err
	}
	exchange := filepath.Dir(path)
	final := filepath.Join(exchange, answerDir)
	stages, err := newTeller(filepath.Join(exchange, stagesFile))
	if err != nil {
		return fmt.Errorf("another job has begun with it: %w", err)
	}
	defer stages.f.Close()
	log, err := os.OpenFile(filepath.Join(exchange, logFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	work, err := newShared(ctx, scratch, workPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.remove(context.WithoutCancel(ctx))) }()
	s := o.Spec
	s.Log, s.Progress = log, stages.stage
	s.Dir = work.dir
	a := answer{Format: answerFormat, Run: o.Run, Recipe: s.Recipe, Host: r.Host()}
	res, err := r.Run(ctx, s)
	if err != nil && !errors.As(err, &a.Failure) {
		return err
	}
	next := final + ".new"
	if err := os.Mkdir(next, 0o700); err != nil {
		return err
	}
	if a.Failure == nil {
		if a.Result, err = bringAll(ctx, res, next); err != nil {
			return err
		}
	}
	text, err := json.Marshal(&a, wire, json.Deterministic(true))
	if err != nil {
		return err
	}
	if err := errors.Join(durable.WriteNew(filepath.Join(next, resultFile), text, 0o600), log.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, final); err != nil {
		return err
	}
	return durable.SyncDir(exchange)
}

// bringAll copies what a run kept into the answer.
func bringAll(ctx context.Context, res Result, dir string) (*answered, error) {
	a := &answered{Varied: res.Varied}
	for _, out := range res.Outputs {
		said, err := bring(ctx, out.name, out.file, dir)
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", out.name, err)
		}
		a.Outputs = append(a.Outputs, said)
	}
	for _, st := range res.Stages {
		told := answeredStage{Name: st.Name, Wall: st.Wall, CPU: st.CPU, PeakMemory: st.PeakMemory, OutBytes: st.OutBytes, LogBytes: st.LogBytes}
		for _, f := range st.Artifacts {
			said, err := bring(ctx, f.path, f.file, dir)
			if err != nil {
				return nil, fmt.Errorf("artifact %s of stage %s: %w", f.path, st.Name, err)
			}
			told.Artifacts = append(told.Artifacts, said)
		}
		a.Stages = append(a.Stages, told)
	}
	return a, nil
}

// bring copies a file into the answer. Files with the same bytes are one there.
func bring(ctx context.Context, name string, out file, dir string) (answeredFile, error) {
	m := out.Measurement()
	said := answeredFile{Name: name, SHA256: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()}
	src, err := out.Open()
	if err != nil {
		return said, err
	}
	defer src.Close()
	to := filepath.Join(dir, said.SHA256.String())
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return said, nil
	}
	if err != nil {
		return said, err
	}
	sum, n, err := hashpipe.SumReader(ctx, io.TeeReader(src, dst), nil)
	if err := errors.Join(err, dst.Sync(), dst.Close()); err != nil {
		return said, err
	}
	if n != said.Size || !sum.Is(said.SHA256) {
		return said, fmt.Errorf("%d bytes with SHA-256 %s were copied, %d with %s were measured", n, sum, said.Size, said.SHA256)
	}
	return said, nil
}
