using System.Runtime.ExceptionServices;

namespace Megatron.Testing;

/// <summary>Runs one thread per rank, as a silo does, and hands the first failure to the test.</summary>
public static class RankThreads
{
    /// <summary>
    /// Runs <paramref name="body"/> on <paramref name="size"/> threads. A rank that fails calls <paramref name="onFailure"/> (abort the
    /// world, so that the others do not wait for it); the failure that came first is thrown here.
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
        var deadline = Environment.TickCount64 + (long)(limit ?? TimeSpan.FromSeconds(60)).TotalMilliseconds;
        foreach (var thread in threads)
            if (!thread.Join((int)Math.Max(1, deadline - Environment.TickCount64)))
                throw new TimeoutException($"{thread.Name} of {size} is still running.", failures.FirstOrDefault());
        if (failures.Count > 0) ExceptionDispatchInfo.Throw(failures[0]);
    }
}
