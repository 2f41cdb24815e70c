package example;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * What an app reports to rolloutd, without making a request wait. Copy this file.
 *
 * <p>Kafka's `send` waits when Kafka is away, so a thread of its own calls it, behind a bounded
 * queue. What does not fit is dropped and counted. Requests notice nothing. Java's default
 * partitioner (murmur2 of the key) is the one that rolloutd expects: a user's evaluations and
 * outcomes must meet in one partition.
 */
public final class Telemetry implements AutoCloseable {
    private static final int CAPACITY = 10_000; // events wait at most: about 5 MB
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final byte[] CONTENT_TYPE =
            "application/cloudevents+json; charset=UTF-8".getBytes(StandardCharsets.UTF_8);

    /** A variant that a user was served of a flag. */
    public record Served(String flag, String variant) {
        Map<String, Object> attributes() {
            return Map.of("feature_flag.key", flag, "feature_flag.result.variant", variant);
        }
    }

    /** What became of the events so far. Put them on your metrics; watch `dropped` and `lost`. */
    public final AtomicLong queued = new AtomicLong();

    public final AtomicLong sent = new AtomicLong();
    public final AtomicLong dropped = new AtomicLong();
    public final AtomicLong lost = new AtomicLong();

    private final String source;
    private final String prefix;
    private final KafkaProducer<byte[], byte[]> producer;
    private final ThreadPoolExecutor sender =
            new ThreadPoolExecutor(
                    1,
                    1,
                    0,
                    TimeUnit.SECONDS,
                    new ArrayBlockingQueue<>(CAPACITY),
                    task -> {
                        Thread thread = new Thread(task, "telemetry");
                        thread.setDaemon(true);
                        return thread;
                    });

    /**
     * The source names the app, such as /checkout-api; the prefix is rolloutd's kafka.topic_prefix,
     * empty by default. Kafka need not be there yet.
     */
    public Telemetry(String bootstrap, String source, String prefix) {
        this.source = source;
        this.prefix = prefix;
        this.producer =
                new KafkaProducer<>(
                        Map.of(
                                ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap,
                                ProducerConfig.LINGER_MS_CONFIG, 10),
                        new ByteArraySerializer(),
                        new ByteArraySerializer());
    }

    /** Reports that a user was served a variant. */
    public void evaluated(String contextId, Served served) {
        Map<String, Object> data = new LinkedHashMap<>(served.attributes());
        data.put("feature_flag.context.id", contextId);
        emit("flag.evaluations", "io.rolloutd.evaluation.v1", contextId, data);
    }

    /**
     * Reports how a request ended; with `errorType` null it succeeded. With `served` empty,
     * rolloutd joins the request to what its user was served last.
     */
    public void ended(String contextId, Duration took, String errorType, List<Served> served) {
        Map<String, Object> data = new LinkedHashMap<>();
        data.put("feature_flag.context.id", contextId);
        data.put("http.server.request.duration", took.toNanos() / 1e9);
        if (errorType != null) {
            data.put("error.type", errorType);
        }
        if (!served.isEmpty()) {
            data.put("rolloutd.flags", served.stream().map(Served::attributes).toList());
        }
        emit("request.outcomes", "io.rolloutd.outcome.v1", contextId, data);
    }

    /** Sends what is queued, for at most so long. */
    public void close(Duration longest) throws InterruptedException {
        long until = System.nanoTime() + longest.toNanos();
        sender.shutdown();
        sender.awaitTermination(longest.toNanos(), TimeUnit.NANOSECONDS);
        lost.addAndGet(sender.shutdownNow().size());
        producer.close(Duration.ofNanos(Math.max(0, until - System.nanoTime())));
    }

    @Override
    public void close() throws InterruptedException {
        close(Duration.ofSeconds(2));
    }

    private void emit(String topic, String type, String contextId, Map<String, Object> data) {
        Map<String, Object> event = new LinkedHashMap<>();
        event.put("specversion", "1.0");
        event.put("type", type);
        event.put("source", source);
        event.put("id", UUID.randomUUID().toString());
        event.put("time", Instant.now().truncatedTo(ChronoUnit.MILLIS).toString());
        event.put("data", data);
        queued.incrementAndGet();
        try {
            byte[] value = JSON.writeValueAsBytes(event);
            sender.execute(() -> send(topic, contextId, value));
        } catch (RejectedExecutionException | JsonProcessingException notQueued) {
            dropped.incrementAndGet();
        }
    }

    private void send(String topic, String contextId, byte[] value) {
        byte[] key = contextId.getBytes(StandardCharsets.UTF_8);
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(prefix + topic, key, value);
        record.headers().add("content-type", CONTENT_TYPE);
        try {
            producer.send(
                    record,
                    (metadata, failure) -> (failure == null ? sent : lost).incrementAndGet());
        } catch (KafkaException refused) {
            lost.incrementAndGet();
        }
    }
}
