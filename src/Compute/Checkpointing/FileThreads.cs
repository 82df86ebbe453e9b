using System.Collections.Concurrent;
using System.Runtime.ExceptionServices;

namespace Megatron.Compute.Checkpointing;

/// <summary>Reads or hashes several pieces of files at the same time: one thread does not keep a disk, or the page cache, busy.</summary>
internal static class FileThreads
{
    // Below this, waking other threads takes longer than the work.
    private const long WorthBytes = 16 << 20;

    /// <summary>Calls <paramref name="body"/> for every item, in order as threads get free; the first exception is thrown as it was.</summary>
    /// <param name="items">Largest first, so that the threads end together.</param>
    /// <param name="threadsMax">Most items in work at once.</param>
    /// <param name="sizeBytes">Bytes of all items: few of them are done on the calling thread.</param>
    /// <param name="body">Touches bytes only: tensors belong to the rank's thread.</param>
    public static void ForEach<T>(IReadOnlyList<T> items, int threadsMax, long sizeBytes, Action<T> body)
    {
        var threads = Math.Min(threadsMax, Math.Min(items.Count, Environment.ProcessorCount));
        if (threads <= 1 || sizeBytes < WorthBytes)
        {
            foreach (var item in items) body(item);
            return;
        }
        try
        {
            Parallel.ForEach(Partitioner.Create(items, EnumerablePartitionerOptions.NoBuffering), new ParallelOptions { MaxDegreeOfParallelism = threads }, body);
        }
        catch (AggregateException exception)
        {
            ExceptionDispatchInfo.Throw(exception.InnerExceptions[0]);
        }
    }
}
