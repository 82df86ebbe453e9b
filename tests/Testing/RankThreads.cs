using System.Runtime.ExceptionServices;

namespace Megatron.Testing;

/// <summary>Runs one thread per rank, as a silo does, and hands the first failure to the test.</summary>
public static class RankThreads
{
    /// <summary>For what a rank does between two collectives.</summary>
    private static readonly TimeSpan TimeToEnd = TimeSpan.FromSeconds(30);

    /// <summary>
    /// Runs <paramref name="body"/> on <paramref name="size"/> threads. A rank that fails calls <paramref name="onFailure"/> (abort the
    /// world, so that the others do not wait for it); the failure that came first is thrown here. So does the end of the limit: a thread that
    /// stayed inside libtorch would bring the process down when that ends.
    /// </summary>
    /// <exception cref="TimeoutException">A rank did not end within <paramref name="limit"/>.</exception>
    public static void Run(int size, Action<int> body, Action<Exception>? onFailure = null, TimeSpan? limit = null)
    {
        TorchTestSetup.EnsureLoaded();
        var failures = new List<Exception>();
        var threads = new Thread[size];
        for (var i = 0; i < size; i++)
        {
            var rank = i;
            threads[rank] = new Thread(() =>
            {
                try
                {
                    TorchSharp.torch.set_num_threads(1); // counts per thread: without it sums would be split as the machine's cores suggest
                    body(rank);
                }
                catch (Exception failure)
                {
                    lock (failures) failures.Add(failure);
                    onFailure?.Invoke(failure);
                }
            })
            { Name = $"rank {rank}", IsBackground = true };
            threads[rank].Start();
        }
        if (FirstRunning(threads, limit ?? TimeSpan.FromSeconds(60)) is { } late)
        {
            TimeoutException failure;
            lock (failures) failure = new TimeoutException($"{late.Name} of {size} is still running.", failures.FirstOrDefault());
            onFailure?.Invoke(failure);
            FirstRunning(threads, TimeToEnd);
            throw failure;
        }
        if (failures.Count > 0) ExceptionDispatchInfo.Throw(failures[0]);
    }

    /// <summary>A thread that has not ended when the time is over.</summary>
    private static Thread? FirstRunning(Thread[] threads, TimeSpan time)
    {
        var deadline = Environment.TickCount64 + (long)time.TotalMilliseconds;
        return Array.Find(threads, thread => !thread.Join((int)Math.Max(1, deadline - Environment.TickCount64)));
    }
}
