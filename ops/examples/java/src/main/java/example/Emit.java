package example;

import java.time.Duration;
import java.util.List;
import org.apache.kafka.common.KafkaException;

/**
 * Reports one request of each user that is named.
 *
 * <p>KAFKA (default 127.0.0.1:9094) is where rolloutd's Kafka is, TOPIC_PREFIX its topic prefix.
 * A user whose name ends in "-failed" had an error.
 */
public final class Emit {
    private Emit() {}

    /** Reports, prints what became of the events, and exits with 1 if one did not reach Kafka. */
    public static void main(String[] users) throws InterruptedException {
        String bootstrap = System.getenv().getOrDefault("KAFKA", "127.0.0.1:9094");
        String prefix = System.getenv().getOrDefault("TOPIC_PREFIX", "");
        Telemetry telemetry;
        try {
            telemetry = new Telemetry(bootstrap, "/example-java", prefix);
        } catch (KafkaException unusable) { // no address, or a name that nobody knows
            fail(bootstrap, String.valueOf(unusable.getCause()));
            return;
        }
        for (String user : users.length > 0 ? users : new String[] {"user-42"}) {
            // what your OpenFeature client said
            Telemetry.Served served = new Telemetry.Served("new-checkout", "on");
            telemetry.evaluated(user, served);
            String errorType = user.endsWith("-failed") ? "500" : null;
            telemetry.ended(user, Duration.ofMillis(183), errorType, List.of(served));
        }
        telemetry.close(Duration.ofSeconds(10));
        System.out.printf(
                "%d queued, %d sent, %d dropped, %d lost%n",
                telemetry.queued.get(),
                telemetry.sent.get(),
                telemetry.dropped.get(),
                telemetry.lost.get());
        if (telemetry.sent.get() != telemetry.queued.get()) {
            fail(bootstrap, "no broker answered, or it has no such topics");
        }
    }

    /** Says what to do where events did not reach Kafka, and ends the process. */
    private static void fail(String bootstrap, String reason) {
        System.err.println("not all of them reached Kafka at " + bootstrap);
        System.err.println("reason: " + reason);
        System.err.println(
                "next: let KAFKA=HOST:PORT name a Kafka that runs: 127.0.0.1:9092 after `make up`,"
                        + " 127.0.0.1:9094 with Docker Compose; rolloutd makes the topics when it"
                        + " starts");
        System.exit(1);
    }
}
