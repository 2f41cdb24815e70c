// What an app reports to rolloutd, without making a request wait. Copy this file.
//
// The client keeps a bounded number of events and sends them from a goroutine of its own. While
// Kafka is away or slow, what does not fit is dropped and counted. Requests notice nothing.

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	capacity    = 10_000 // events wait at most: about 5 MB
	contentType = "application/cloudevents+json; charset=UTF-8"
)

// Counts says what became of the events so far. Put it on your metrics; watch Dropped and Lost.
type Counts struct {
	Queued, Sent, Dropped, Lost atomic.Int64
}

// Served names a variant that a user was served of a flag.
type Served struct {
	Flag    string `json:"feature_flag.key"`
	Variant string `json:"feature_flag.result.variant"`
}

// Telemetry sends the two events.
type Telemetry struct {
	Counts Counts
	client *kgo.Client
	source string
	prefix string
}

// NewTelemetry returns one at once; Kafka need not be there yet. The source names the app, such as
// /checkout-api. The prefix is rolloutd's kafka.topic_prefix, empty by default.
func NewTelemetry(bootstrap, source, prefix string) (*Telemetry, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap),
		kgo.MaxBufferedRecords(capacity),
		kgo.ProducerLinger(10*time.Millisecond),
		// Murmur2, as Java's: a user's evaluations and outcomes must meet in one partition.
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)
	if err != nil {
		return nil, err
	}
	return &Telemetry{client: client, source: source, prefix: prefix}, nil
}

// Evaluated reports that a user was served a variant.
func (t *Telemetry) Evaluated(contextID string, served Served) {
	t.emit("flag.evaluations", "io.rolloutd.evaluation.v1", contextID, map[string]any{
		"feature_flag.key":            served.Flag,
		"feature_flag.result.variant": served.Variant,
		"feature_flag.context.id":     contextID,
	})
}

// Ended reports how a request ended. An empty errorType means that it succeeded. Without `served`,
// rolloutd joins the request to what its user was served last.
func (t *Telemetry) Ended(
	contextID string, took time.Duration, errorType string, served ...Served,
) {
	data := map[string]any{
		"feature_flag.context.id":      contextID,
		"http.server.request.duration": took.Seconds(),
	}
	if errorType != "" {
		data["error.type"] = errorType
	}
	if len(served) > 0 {
		data["rolloutd.flags"] = served
	}
	t.emit("request.outcomes", "io.rolloutd.outcome.v1", contextID, data)
}

// Close sends what is queued, for at most so long.
func (t *Telemetry) Close(longest time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	err := t.client.Flush(ctx)
	if err != nil {
		_ = t.client.AbortBufferedRecords(context.Background()) // counts what is left as lost
	}
	t.client.Close()
	return err
}

func (t *Telemetry) emit(topic, kind, contextID string, data map[string]any) {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails, says its documentation
	value, err := json.Marshal(map[string]any{
		"specversion": "1.0",
		"type":        kind,
		"source":      t.source,
		"id":          hex.EncodeToString(id),
		"time":        time.Now().UTC().Format(time.RFC3339Nano),
		"data":        data,
	})
	if err != nil {
		t.Counts.Dropped.Add(1)
		return
	}
	record := &kgo.Record{
		Topic:   t.prefix + topic,
		Key:     []byte(contextID),
		Value:   value,
		Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte(contentType)}},
	}
	t.Counts.Queued.Add(1)
	t.client.TryProduce(context.Background(), record, func(_ *kgo.Record, err error) {
		switch err {
		case nil:
			t.Counts.Sent.Add(1)
		case kgo.ErrMaxBuffered:
			t.Counts.Dropped.Add(1)
		default:
			t.Counts.Lost.Add(1)
		}
	})
}
