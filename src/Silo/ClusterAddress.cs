using System.Globalization;
using Megatron.Compute.Configuration;
using StackExchange.Redis;

namespace Megatron.Silo;

/// <summary>The Redis through which silos and clients of one cluster find one another, and the name of the cluster in it.</summary>
/// <param name="Host">Name or address of the Redis server.</param>
/// <param name="Port">Its port.</param>
/// <param name="Database">Its database.</param>
/// <param name="ClusterId">Name of the cluster: several may live in one Redis.</param>
public sealed record ClusterAddress(string Host, int Port, int Database, string ClusterId)
{
    /// <summary>Orleans' service id of every cluster of this program.</summary>
    public const string ServiceId = "megatron";

    private const int DefaultPort = 6379;
    private const string DefaultClusterId = "megatron";

    private string? User { get; init; }

    private string? Password { get; init; }

    private bool UseTls { get; init; }

    /// <summary>
    /// Reads <c>redis://[user:password@]host[:port][/database][?cluster=NAME]</c>, <c>rediss://…</c> for TLS, or bare <c>host:port</c>.
    /// </summary>
    /// <exception cref="ConfigException">CFG060: it is none of these.</exception>
    public static ClusterAddress Parse(string text)
    {
        string full = text.Contains("://", StringComparison.Ordinal) ? text : "redis://" + text;
        if (!Uri.TryCreate(full, UriKind.Absolute, out var uri) || uri.Scheme is not ("redis" or "rediss") || uri.Host.Length == 0)
            throw Refuse(text);
        string path = uri.AbsolutePath.Trim('/');
        int database = 0;
        if (path.Length > 0 && !int.TryParse(path, NumberStyles.None, CultureInfo.InvariantCulture, out database))
            throw Refuse(text);
        var secrets = uri.UserInfo.Split(':', 2);
        return new ClusterAddress(uri.IdnHost, uri.Port > 0 ? uri.Port : DefaultPort, database, ClusterIdOf(uri.Query) ?? DefaultClusterId)
        {
            User = secrets is [{ Length: > 0 } user, _] ? Uri.UnescapeDataString(user) : null,
            Password = secrets is [_, { Length: > 0 } password] ? Uri.UnescapeDataString(password) : null,
            UseTls = uri.Scheme == "rediss",
        };
    }

    /// <summary>What StackExchange.Redis needs. A connection that is lost comes back by itself; a call fails after two seconds.</summary>
    public ConfigurationOptions ToRedis() => new()
    {
        EndPoints = { { Host, Port } },
        DefaultDatabase = Database,
        User = User,
        Password = Password,
        Ssl = UseTls,
        AbortOnConnectFail = false,
        ConnectTimeout = 2000,
        AsyncTimeout = 2000,
        SyncTimeout = 2000,
        ReconnectRetryPolicy = new LinearRetry(500),
        ClientName = "megatron",
    };

    /// <summary>Without the password.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"redis://{Host}:{Port}/{Database}?cluster={ClusterId}");

    private static string? ClusterIdOf(string query)
    {
        const string name = "cluster=";
        string text = query.TrimStart('?');
        return text.StartsWith(name, StringComparison.Ordinal) && text.Length > name.Length ? Uri.UnescapeDataString(text[name.Length..]) : null;
    }

    private static ConfigException Refuse(string text)
    {
        int at = text.IndexOf('@', StringComparison.Ordinal);
        string shown = at < 0 ? text : "…" + text[at..]; // what stands before may be a password
        return new ConfigException("CFG060", $"--cluster = {shown} is no address of a Redis server; give redis://host:port.");
    }
}
