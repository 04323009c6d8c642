package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/metrics"
)

// lookPatience bounds what a scrape waits for the daemon.
const lookPatience = 5 * time.Second

func newMetricsCommand(a *app) *cobra.Command {
	var listen, textfile string
	c := &cobra.Command{
		Use:   "metrics",
		Short: "Tell what status shows in the terms of Prometheus",
		Long: `metrics prints what status shows as metrics in the text format of Prometheus.
With --listen it answers scrapes of /metrics until it is told to end, and asks the
daemon each time; the daemon itself listens to nobody but its socket. With
--textfile it writes a file for the textfile collector of node_exporter, whole or
not at all.

A daemon that does not answer is clawfs_up 0, and no error. What is not known then
has no sample. There are no names of models or files in the metrics: a mount is
named by its directory, and clawfs why and the mount's log tell of files.

Rules for alerts are in deploy/clawfs-alerts.yml.`,
		Example: `  clawfs metrics | grep audit_mode
  clawfs metrics --listen 127.0.0.1:9847
  clawfs metrics --textfile /var/lib/prometheus/node-exporter/clawfs.prom`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			set := c.Flags().Changed
			switch {
			case set("listen") && set("textfile"):
				return exitf(codeUsage, "--listen and --textfile: want one of them; see `clawfs metrics --help`")
			case set("listen") && listen == "": // of a unit whose variable is not set
				return exitf(codeUsage, "--listen: want an address, got an empty one; see `clawfs metrics --help`")
			case set("textfile") && textfile == "":
				return exitf(codeUsage, "--textfile: want a file, got an empty path; see `clawfs metrics --help`")
			}
			r := metrics.Registry(func() (metrics.Seen, error) { return a.seen(c.Context()) })
			switch {
			case listen != "":
				return a.serveMetrics(c.Context(), r, listen)
			case textfile != "":
				return a.writeTextfile(r, textfile)
			}
			return a.printMetrics(r)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "`address` and port at which to answer scrapes, such as 127.0.0.1:9847")
	c.Flags().StringVar(&textfile, "textfile", "", "`file` to write, which ends in .prom")
	return c
}

// seen looks as status does.
func (a *app) seen(ctx context.Context) (metrics.Seen, error) {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	s, err := a.client().Status(ctx)
	var gone *control.UnreachableError
	if errors.As(err, &gone) && !errors.Is(err, os.ErrPermission) {
		mounts, warnings, err := a.lookWithoutDaemon()
		return metrics.Seen{Mounts: mounts, Warnings: len(warnings)}, err
	}
	if err != nil {
		return metrics.Seen{}, a.answered(err)
	}
	return metrics.Seen{Daemon: &s, Mounts: s.Mounts, Warnings: len(s.Warnings)}, nil
}

// metricSample is a sample in the output as JSON.
type metricSample struct {
	Name   string            `json:"name"`
	Type   string            `json:"type"` // gauge, counter
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

func (a *app) printMetrics(r *prometheus.Registry) error {
	families, err := r.Gather()
	if err != nil {
		return err
	}
	list := []metricSample{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			s := metricSample{Name: f.GetName(), Type: "gauge", Value: m.GetGauge().GetValue()}
			if m.Counter != nil {
				s.Type, s.Value = "counter", m.GetCounter().GetValue()
			}
			for _, l := range m.GetLabel() {
				if s.Labels == nil {
					s.Labels = make(map[string]string)
				}
				s.Labels[l.GetName()] = l.GetValue()
			}
			list = append(list, s)
		}
	}
	return a.print(list, func() {
		for _, f := range families {
			_, _ = expfmt.MetricFamilyToText(a.stdout, f) // a.stdout keeps its error
		}
	})
}

// writeTextfile replaces the file for node_exporter, which reads no other names.
func (a *app) writeTextfile(r *prometheus.Registry, path string) error {
	if filepath.Ext(path) != ".prom" {
		return exitf(codeUsage, "--textfile %s: want a name that ends in .prom, which is what node_exporter reads", printable(path))
	}
	if err := prometheus.WriteToTextfile(path, r); err != nil {
		return fmt.Errorf("--textfile %s: %w", printable(path), err)
	}
	return a.print(struct {
		Textfile string `json:"textfile"`
	}{path}, func() {})
}

// serveMetrics answers scrapes until ctx ends.
func (a *app) serveMetrics(ctx context.Context, r *prometheus.Registry, listen string) error {
	log := slog.New(slog.NewJSONHandler(a.stderr, nil)).With("pid", os.Getpid())
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), MaxRequestsInFlight: 4, DisableCompression: true,
	}))
	srv := &http.Server{
		Handler:     mux,
		ReadTimeout: lookPatience, WriteTimeout: 4 * lookPatience, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	log.Info("metrics are served", "url", "http://"+l.Addr().String()+"/metrics", "state", a.state)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookPatience)
	defer cancel()
	if srv.Shutdown(drain) != nil {
		srv.Close()
	}
	<-ended
	log.Info("metrics ended")
	return nil
}
