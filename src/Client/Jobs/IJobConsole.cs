using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>Where a followed job is shown.</summary>
public interface IJobConsole
{
    /// <summary>Shows one event; called in the order of the events, never twice at a time.</summary>
    void Show(JobEvent item);

    /// <summary>Shows a line of the console itself, e.g. what a signal sets off; may come between two events, from another thread.</summary>
    void Say(string line);

    /// <summary>Shows why nothing goes on, on the error stream.</summary>
    void SayError(string line);
}
