using System.Runtime.ExceptionServices;
using Megatron.Compute.Native;

namespace Megatron.Compute.Checkpointing;

/// <summary>One piece of work on a thread of its own, whose result is taken later by the thread that started it.</summary>
/// <typeparam name="T">Result.</typeparam>
internal sealed class BackgroundWork<T> where T : class
{
    private readonly Thread thread;
    private T? result;
    private Exception? failure;

    /// <summary>True when the result can be taken without waiting.</summary>
    public bool IsDone => !thread.IsAlive;

    /// <param name="name">Name of the thread.</param>
    /// <param name="work">Touches no tensor that another thread uses meanwhile.</param>
    /// <param name="givesWay">Threads that compute come first: a step on a CPU is as slow as the thread that was put aside for the work.</param>
    public BackgroundWork(string name, Func<T> work, bool givesWay = false)
    {
        thread = new Thread(() =>
        {
            if (givesWay) ThreadWeight.GiveWay();
            try
            {
                result = work();
            }
            catch (Exception exception)
            {
                failure = exception;
            }
        })
        { IsBackground = true, Name = name };
        thread.Start();
    }

    /// <summary>Waits for the end of the work.</summary>
    /// <exception cref="Exception">What the work threw.</exception>
    public T Take()
    {
        thread.Join();
        if (failure is not null) ExceptionDispatchInfo.Throw(failure);
        return result ?? throw new InvalidOperationException($"{thread.Name} gave nothing.");
    }

    /// <summary>Waits for the end of the work, whatever came out.</summary>
    public void Join() => thread.Join();
}
