using System.Threading.Channels;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains;

/// <summary>
/// Sends a grain's reports upwards, in order, outside its turns: a rank to its stage, a stage to its job. Commands go down and are awaited in a
/// turn; reports go up and never are, so that no two grains can wait for each other. A delivery that failed is repeated (a timeout means
/// unknown), hence receivers drop what they know by sequence number.
/// </summary>
internal sealed class GrainOutbox<T>
{
    private const int MaxBatch = 256;
    private static readonly TimeSpan firstDelay = TimeSpan.FromMilliseconds(100);
    private static readonly TimeSpan longestDelay = TimeSpan.FromSeconds(1);

    private readonly Channel<T> queue = Channel.CreateUnbounded<T>(new UnboundedChannelOptions { SingleReader = true });
    private readonly Func<IReadOnlyList<T>, Task> deliver;
    private readonly TimeProvider time;
    private readonly ILogger logger;

    public GrainOutbox(Func<IReadOnlyList<T>, Task> deliver, TimeProvider time, ILogger logger)
    {
        this.deliver = deliver;
        this.time = time;
        this.logger = logger;
    }

    /// <summary>Queues one report; any thread may call it.</summary>
    public void Post(T item) => queue.Writer.TryWrite(item);

    /// <summary>Delivers until cancelled. Call it inside a turn of the grain: the continuations then run on the grain's scheduler.</summary>
    public async Task RunAsync(CancellationToken cancellation)
    {
        try
        {
            while (await queue.Reader.WaitToReadAsync(cancellation))
            {
                List<T> batch = [];
                while (batch.Count < MaxBatch && queue.Reader.TryRead(out var item))
                    batch.Add(item);
                await DeliverAsync(batch, cancellation);
            }
        }
        catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
        {
            // The attempt is over: nobody waits for what is left.
        }
    }

    private async Task DeliverAsync(List<T> batch, CancellationToken cancellation)
    {
        var delay = firstDelay;
        while (true)
        {
            try
            {
                await deliver(batch);
                return;
            }
            catch (Exception fault) when (!cancellation.IsCancellationRequested)
            {
                // A lost message heals by itself; anything else is a mistake in this program and must be seen.
                var level = fault is TimeoutException or OrleansException ? LogLevel.Warning : LogLevel.Error;
                GrainLog.DeliveryFailed(logger, level, batch.Count, delay.TotalSeconds, fault);
            }
            await Task.Delay(delay, time, cancellation);
            delay = delay * 2 < longestDelay ? delay * 2 : longestDelay;
        }
    }
}
